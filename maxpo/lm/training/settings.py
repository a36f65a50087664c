"""A config becomes what training needs, or an error that says what is wrong with it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel, runs
from maxpo.lm.model import pretrained
from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks import chat, text, tokenizers
from maxpo.lm.tasks.rewards import load_rewards
from maxpo.lm.tasks.verifiers import find_verifier
from maxpo.lm.training.checks import check_rl
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.handover import checkpoint_folder
from maxpo.lm.training.problems import EncodedProblems, encode, shared_prompts
from maxpo.methods import Method, check_graded, parse_methods

__all__ = ["Settings", "digests", "make_model", "make_settings"]

TASKS = ("reasoning", "jsonl")
EXPORTS = ("", "float32", "bfloat16")
CORRECT = "correct"
"""The part of a reward that `task.verifier` is."""


class Settings(NamedTuple):
    """What a config stands for.

    Attributes:
      config: The config itself.
      task: Problems and their verifier.
      tokenizer: Between text and tokens.
      train: Problems to learn from.
      held_out: Problems to judge by.
      answers: To those of `train`, with their end tokens: tokens `[P, T]`, padded on the right, and
        their mask. None without fine-tuning.
      model: Architecture of the policy.
      methods: What is compared.
      checkpoint: The checkpoint that the policy comes from. None: it has random parameters.
    """

    config: ConfigDict
    task: text.TextTask
    tokenizer: tokenizers.Tokenizer
    train: EncodedProblems
    held_out: EncodedProblems
    answers: tuple[np.ndarray, np.ndarray] | None
    model: TransformerConfig
    methods: list[Method]
    checkpoint: Path | None

    @property
    def grading(self) -> Grading:
        """What the verifier's scores mean."""
        return Grading(self.config.task.success, self.config.task.binary)


def make_settings(config: ConfigDict, *, trains: bool = True) -> Settings:
    """Checks a config and loads what it names.

    Args:
      config: That of a study.
      trains: Whether anything is to be learned; else the training problems may be any.

    Raises:
      ValueError: If a value makes no sense, naming the field, what is expected and what came.
      MissingExtraError: If a package of an extra is missing, naming the extra.
    """
    _check_numbers(config)
    check_rl(config)
    _check_success(config.task)
    methods = parse_methods(config.methods, group_size=config.rl.group_size)
    names = [method.estimator for method in methods]
    if not config.task.binary:
        check_graded(names, "methods", "task.binary")
    if config.rl.truncated == "penalty":
        check_graded(names, "methods", "rl.truncated=penalty")
    named = config.model.pretrained
    checkpoint = checkpoint_folder(named) if named else None
    task = _make_task(config.task)
    is_chat = _wants_chat(config.task, checkpoint)
    if not is_chat and any(each.messages for each in (*task.train, *task.held_out)):
        raise ValueError(
            "task.prompt_field: expected texts where prompts are no chats, got messages; they need "
            "model.pretrained with a chat template, and task.chat=True"
        )
    if is_chat:
        assert checkpoint is not None
        task = _as_chats(config.task, checkpoint, task)
    task = _with_prefix(config.task.answer_prefix, task)
    for name, problems in (("train", task.train), ("held-out", task.held_out)):
        if not problems:
            raise ValueError(f"task: expected at least one {name} problem, got none")
    if trains and (shared := shared_prompts(task.train, task.held_out)):
        runs.say(
            f"warning: {shared} of the {len(task.held_out)} held-out problems have the prompt of a "
            "problem to train on: results on them tell how much is remembered"
        )
    tokenizer = _make_tokenizer(config.tokenizer, checkpoint, task)
    task = _without_long_prompts(config.task.max_prompt_length, task, tokenizer, start=not is_chat)
    train, held_out = encode(
        task.train, task.held_out, tokenizer, start=not is_chat, batch=config.rl.prompts
    )
    length = _prompt_length(config, train, held_out)
    return Settings(
        config,
        task,
        tokenizer,
        train,
        held_out,
        _encode_answers(config, task, tokenizer) if config.sft.steps else None,
        _model_config(config, checkpoint, tokenizer, length),
        methods,
        checkpoint,
    )


def digests(settings: Settings) -> dict[str, str]:
    """What a config only names: problems, tokenizer and checkpoint, in a few words each.

    Part of what tells a run from another: a file that was changed since, or a package that makes
    other problems now, is refused as another config is.
    """
    task = settings.task
    tokenizer = settings.tokenizer.to_json().encode()
    shared = shared_prompts(task.train, task.held_out)
    held_out = f"{len(task.held_out)} problems, {shared} of them in train"
    found = {
        "train": f"{len(task.train)} problems, {text.digest(task.train)}",
        "held_out": f"{held_out}, {text.digest(task.held_out)}",
        "tokenizer": f"sha256:{hashlib.sha256(tokenizer).hexdigest()[:16]}",
    }
    if (folder := settings.checkpoint) is not None:
        content = hashlib.sha256((folder / "config.json").read_bytes())
        # Weights by their size: reading them all would take as long as loading them.
        for file in sorted(folder.glob("*.safetensors")):
            content.update(f"{file.name} {file.stat().st_size}\n".encode())
        found["pretrained"] = f"sha256:{content.hexdigest()[:16]}"
    return found


def make_model(settings: Settings, key: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
    """The policy before any training: its structure and its parameters.

    Args:
      settings: Name a checkpoint or a size.
      key: PRNG key of random parameters.
    """
    folder = settings.checkpoint
    if folder is not None:
        model = pretrained.load_pretrained(
            folder,
            context_length=settings.model.context_length,
            **_model_options(settings.config),
        )
        return nnx.split(model)

    def init(key: jax.Array) -> Transformer:
        return Transformer(settings.model, rngs=nnx.Rngs(key))

    return nnx.graphdef(nnx.eval_shape(init, key)), jax.jit(lambda key: nnx.state(init(key)))(key)


def _check_numbers(config: ConfigDict) -> None:
    least = {
        "seed": 0,
        "seeds": 1,
        "model.vocab_size": 0,
        "model.context_length": 0,
        "task.max_prompt_length": 0,
        "sft.steps": 0,
        "sft.batch_size": 1,
        "sft.warmup_steps": 0,
        "sft.weight_decay": 0,
        "sft.log_every": 1,
        "sft.save_every": 1,
        "log.every": 0,
        "log.groups": 1,
        "verification.workers": 1,
    }
    positive = (
        *("sft.learning_rate", "sft.max_gradient_norm", "sft.final_rate"),
        *("verification.time_limit", "verification.memory_limit"),
    )
    runs.check_numbers(
        config,
        at_least=least,
        above=dict.fromkeys(positive, 0),
        or_infinite=("sft.max_gradient_norm",),
    )
    parallel.check_batch("sft.batch_size", config.sft.batch_size)
    if config.model.export not in EXPORTS:
        raise ValueError(
            f"model.export: expected one of float32, bfloat16, or nothing; got "
            f"{config.model.export!r}"
        )
    if config.task.kind not in TASKS:
        raise ValueError(f"task.kind: expected one of {', '.join(TASKS)}; got {config.task.kind!r}")


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
                f"task.{name}: expected none where prompts are no chats, got {task[name]!r}"
            )
    return wanted


def _as_chats(config: ConfigDict, checkpoint: Path, task: text.TextTask) -> text.TextTask:
    """The task in the format of the checkpoint's chats."""
    template = chat.load_chat_template(checkpoint)
    variables = _json_object("task.chat_options", config.chat_options)
    as_chat = partial(template.problem, system=config.system, variables=variables)
    return task._replace(
        train=[as_chat(problem) for problem in task.train],
        held_out=[as_chat(problem) for problem in task.held_out],
    )


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

    return task._replace(
        train=[begun(problem) for problem in task.train],
        held_out=[begun(problem) for problem in task.held_out],
    )


def _without_long_prompts(
    longest: int, task: text.TextTask, tokenizer: tokenizers.Tokenizer, *, start: bool
) -> text.TextTask:
    """The task without prompts of more than `longest` tokens, 0 for no limit; says how many."""
    if not longest:
        return task
    extra = len(getattr(tokenizer, "start_ids", ())) if start else 0

    def fits(problem: text.Problem) -> bool:
        return len(tokenizer.encode(problem.prompt)) + extra <= longest

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


def _make_tokenizer(
    name: str, checkpoint: Path | None, task: text.TextTask
) -> tokenizers.Tokenizer:
    path = name or checkpoint or "characters"
    if path != "characters":
        return tokenizers.load_tokenizer(path)
    problems = (*task.train, *task.held_out)
    return tokenizers.CharTokenizer.from_texts(
        [text for problem in problems for text in (problem.prompt, problem.answer)]
    )


def _encode_answers(
    config: ConfigDict, task: text.TextTask, tokenizer: tokenizers.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    answers = []
    for number, problem in enumerate(task.train):
        if not problem.answer:
            raise ValueError(
                f"sft: expected an answer to learn for every problem, got none for number "
                f"{number}, {problem.prompt!r}; set sft.steps=0 to go without"
            )
        answers.append([*tokenizer.encode(problem.answer), tokenizer.eos_id])
    lengths = [len(answer) for answer in answers]
    longest, room = max(lengths), config.rl.max_new_tokens
    if longest > room:
        raise ValueError(
            f"rl.max_new_tokens: expected at least {longest}, for the answer "
            f"{task.train[lengths.index(longest)].answer!r} and its end, got {room}"
        )
    return tokenizers.pad(answers, length=longest, pad_id=tokenizer.pad_id, side="right")


def _prompt_length(config: ConfigDict, *encoded: EncodedProblems) -> int:
    """The longest prompt, which must leave room for the completion."""
    lengths = np.concatenate([part.prompts.mask.sum(axis=1) for part in encoded]).tolist()
    longest, context = max(lengths), config.model.context_length
    if context and longest + config.rl.max_new_tokens > context:
        raise ValueError(
            f"model.context_length: expected at least {longest + config.rl.max_new_tokens}, for "
            f"the {longest} tokens of prompt number {lengths.index(longest)} and rl.max_new_tokens "
            f"= {config.rl.max_new_tokens}, got {context}"
        )
    return longest


def _model_config(
    config: ConfigDict,
    checkpoint: Path | None,
    tokenizer: tokenizers.Tokenizer,
    prompt_length: int,
) -> TransformerConfig:
    context_length = config.model.context_length or prompt_length + config.rl.max_new_tokens
    if checkpoint is not None:
        model = pretrained.load_config(
            checkpoint, context_length=context_length, **_model_options(config)
        )
    else:
        model = make_config(
            config.model.size,
            vocab_size=config.model.vocab_size or tokenizer.vocab_size,
            context_length=context_length,
            **{**_model_options(config), **config.model.overrides.to_dict()},
        )
    if model.vocab_size < tokenizer.vocab_size and checkpoint is not None:
        raise ValueError(
            f"tokenizer: expected at most the {model.vocab_size} tokens of the checkpoint "
            f"{checkpoint}, such as its own {checkpoint / 'tokenizer.json'}, got "
            f"{config.tokenizer!r} with {tokenizer.vocab_size}"
        )
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size: expected at least the {tokenizer.vocab_size} tokens of the "
            f"tokenizer, got {model.vocab_size}"
        )
    if checkpoint is not None:
        pretrained.check_pretrained(checkpoint, model)
    return model


def _model_options(config: ConfigDict) -> dict[str, Any]:
    return {name: config.model[name] for name in ("dtype", "param_dtype", "remat")}
