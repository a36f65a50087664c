"""The task of a config: its problems as a model reads them, and what gives their reward."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.tasks import chat, text, tokenizers
from maxpo.lm.tasks.rewards import load_rewards
from maxpo.lm.tasks.verifiers import comparing, find_verifier
from maxpo.lm.training.problems import prompt_encoder, shared_prompts

__all__ = ["CORRECT", "TASKS", "check_task", "load_task", "without_long_prompts"]

TASKS = ("reasoning", "jsonl")
CORRECT = "correct"
"""The part of a reward that `task.verifier` is."""


def check_task(task: ConfigDict) -> None:
    """Checks what can be checked before a problem is read.

    Raises:
      ValueError: If the kind is unknown, or a wrong answer, whose score is 0, would be correct.
    """
    if task.kind not in TASKS:
        raise ValueError(f"task.kind: expected one of {', '.join(TASKS)}; got {task.kind!r}")
    _check_success(task)


def load_task(
    config: ConfigDict, checkpoint: Path | None, *, trains: bool
) -> tuple[text.TextTask, bool]:
    """The task, with prompts as the model reads them.

    Args:
      config: The `task` of a config.
      checkpoint: The checkpoint that the policy comes from, whose template makes chats.
      trains: Whether anything is to be learned; else the training problems may be any.

    Returns:
      The task, and whether its prompts are chats.

    Raises:
      ValueError: If a value makes no sense, a file is wrong, or there is no problem.
      MissingExtraError: If a package of an extra is missing.
    """
    task = _make_task(config)
    is_chat = _wants_chat(config, checkpoint)
    if not is_chat and any(each.messages for each in (*task.train, *task.held_out)):
        raise ValueError(
            "task.prompt_field: expected texts where prompts are not chats, got messages; they "
            "need model.pretrained with a chat template, and task.chat=True"
        )
    if is_chat:
        assert checkpoint is not None
        task = _as_chats(config, checkpoint, task)
    _check_prefix(config.answer_prefix, task)
    task = _with_prefix(config.answer_prefix, task)
    for name, problems in (("train", task.train), ("held-out", task.held_out)):
        if not problems:
            raise ValueError(f"task: expected at least one {name} problem, got none")
    if trains and (shared := shared_prompts(task.train, task.held_out)):
        runs.say(
            f"warning: {shared} of the {len(task.held_out)} held-out problems have the prompt of a "
            "training problem; results on those measure what was memorized"
        )
    return task, is_chat


def without_long_prompts(
    longest: int, task: text.TextTask, tokenizer: tokenizers.Tokenizer, *, start: bool
) -> text.TextTask:
    """The task without prompts of more than `longest` tokens, 0 for no limit; says how many."""
    if not longest:
        return task
    to_ids = prompt_encoder(tokenizer, start=start)

    def fits(problem: text.Problem) -> bool:
        return len(to_ids(problem.prompt)) <= longest

    def kept(name: str, problems: Sequence[text.Problem]) -> list[text.Problem]:
        found = [problem for problem in problems if fits(problem)]
        if not found:
            raise ValueError(
                f"task.max_prompt_length: expected room for at least one {name} prompt, got "
                f"{longest} tokens, which is less than the shortest has"
            )
        if left := len(problems) - len(found):
            runs.say(
                f"left out {left} of {len(problems)} {name} problems, whose prompts have more than "
                f"task.max_prompt_length = {longest} tokens"
            )
        return found

    return task._replace(train=kept("train", task.train), held_out=kept("held-out", task.held_out))


def _check_success(task: ConfigDict) -> None:
    """Raises ValueError if a wrong answer, whose score is 0, would count as correct."""
    success = task.success
    if not math.isfinite(success):
        raise ValueError(f"task.success: expected a finite score, got {success}")
    # The names of verifiers that come with the project; those of yours have a colon.
    ours = ":" not in task.verifier
    if success <= 0 and (task.binary or ours):
        why = f"task.verifier={task.verifier}" if ours else "task.binary=True"
        raise ValueError(
            f"task.success: expected more than 0, the score of a wrong answer, for {why}; got "
            f"{success}. Negative scores need a verifier of your own and task.binary=False"
        )
    if success > 1 and ours:
        raise ValueError(
            "task.success: expected at most 1, the largest score of "
            f"task.verifier={task.verifier}, got {success}"
        )


def _check_prefix(prefix: str, task: text.TextTask) -> None:
    """Raises ValueError if the exact verifier could never find an answer after the prefix."""
    if not prefix or "exact" not in comparing(task.verifier):
        return
    for number, problem in enumerate((*task.train, *task.held_out)):
        if not problem.answer.lstrip().startswith(prefix.strip()):
            raise ValueError(
                f"task.answer_prefix: expected answers that begin with {prefix!r}, which the exact "
                f"verifier sees as a part of each completion, got {text.shown(problem.answer)} in "
                f"number {number}"
            )


def _make_task(task: ConfigDict) -> text.TextTask:
    if task.kind == "reasoning":
        from maxpo.lm.tasks import reasoning

        runs.check_numbers(task, at_least={"train_size": 1, "held_out_size": 1, "seed": 0})
        given = task.options if isinstance(task.options, str) else task.options.to_dict()
        options = reasoning.parse_options(given, task.dataset)
        own = {"scorer": reasoning.ReasoningVerifier(task.dataset, options, None)}
        return reasoning.make_reasoning_task(
            task.dataset,
            train_size=task.train_size,
            held_out_size=task.held_out_size,
            seed=task.seed,
            template=task.template,
            answer_template=task.answer_template,
            options=options,
            verifier=_make_verifier(task, own),
            progress=runs.progress,
        )
    from maxpo.lm.tasks import files

    for field in ("train_path", "held_out_path"):
        if not task[field]:
            raise ValueError(f"task.{field}: expected a file of problems, got none")
    return files.make_file_task(
        task.train_path,
        task.held_out_path,
        prompt_field=task.prompt_field,
        # A flag of the command line cannot be None.
        answer_field=None if task.answer_field in (None, "", "None") else task.answer_field,
        template=task.template,
        verifier=_make_verifier(task, {}),
    )


def _make_verifier(task: ConfigDict, own: Mapping[str, text.Verifier]) -> text.Verifier:
    """The verifier of a task, which decides what is correct, and the further parts of its reward.

    Args:
      task: The `task` of a config.
      own: Verifiers of this kind of tasks, by name.
    """
    parts = _json_object("task.parts", task.parts)
    if not parts:
        return find_verifier(task.verifier, **own)
    if task.binary:
        raise ValueError(
            "task.parts: expected none for task.binary=True, with which the reward is whether a "
            f"sample is correct and nothing else, got {task.parts!r}"
        )
    names, weights = {CORRECT: task.verifier}, {CORRECT: 1.0}
    for name, part in parts.items():
        is_part = isinstance(part, dict) and set(part) == {"verifier", "weight"}
        if name == CORRECT or not is_part or not isinstance(part["verifier"], str):
            raise ValueError(
                f"task.parts: expected a verifier and a weight for each name but {CORRECT!r}, such "
                'as {"brief": {"verifier": "mine:is_brief", "weight": 0.2}}, got '
                f"{json.dumps({name: part})}"
            )
        names[name], weights[name] = part["verifier"], part["weight"]
    return load_rewards(names, weights, own=own)


def _wants_chat(task: ConfigDict, checkpoint: Path | None) -> bool:
    """Whether prompts are chats: by default, where the checkpoint has a template for them."""
    wanted = bool(task.chat)
    if checkpoint is None and wanted:
        raise ValueError(
            "task.chat: expected False without model.pretrained, whose template makes the chats, "
            "got True"
        )
    if checkpoint is not None and task.chat is None:
        wanted = chat.has_chat_template(checkpoint)
    for name in () if wanted else ("system", "chat_options"):
        if task[name]:
            raise ValueError(
                f"task.{name}: expected none where prompts are not chats, got {task[name]!r}"
            )
    return wanted


def _as_chats(config: ConfigDict, checkpoint: Path, task: text.TextTask) -> text.TextTask:
    """The task in the format of the checkpoint's chats."""
    template = chat.load_chat_template(checkpoint)
    variables = _json_object("task.chat_options", config.chat_options)
    as_chat = partial(template.problem, system=config.system, variables=variables)
    return _with_problems(task, as_chat)


def _json_object(name: str, content: str) -> dict[str, Any]:
    """The object that a field holds as JSON, which a flag of the command line can be; "" is empty.

    Raises:
      ValueError: If it is something else.
    """
    try:
        found = json.loads(content or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a JSON object, got {content!r}")
    return found


def _with_prefix(prefix: str, task: text.TextTask) -> text.TextTask:
    """The task with prompts that end with how the answer begins."""
    if not prefix:
        return task

    def begun(problem: text.Problem) -> text.Problem:
        return problem._replace(prompt=problem.prompt + prefix)

    return _with_problems(task, begun)


def _with_problems(
    task: text.TextTask, change: Callable[[text.Problem], text.Problem]
) -> text.TextTask:
    """The task with each of its problems changed."""
    return task._replace(
        train=list(map(change, task.train)), held_out=list(map(change, task.held_out))
    )
