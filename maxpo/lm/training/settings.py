"""A config becomes what training needs, or an error that says what is wrong with it."""

import hashlib
import math
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
from maxpo.lm.tasks import text, tokenizers
from maxpo.lm.training.checks import check_rl
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.problems import EncodedProblems, encode, shared_prompts
from maxpo.methods import Method, check_graded, parse_methods

__all__ = ["Settings", "digests", "make_model", "make_settings"]

TASKS = ("reasoning", "jsonl")


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
    """

    config: ConfigDict
    task: text.TextTask
    tokenizer: tokenizers.Tokenizer
    train: EncodedProblems
    held_out: EncodedProblems
    answers: tuple[np.ndarray, np.ndarray] | None
    model: TransformerConfig
    methods: list[Method]

    @property
    def grading(self) -> Grading:
        """What the verifier's scores mean."""
        return Grading(self.config.task.success, self.config.task.binary)


def make_settings(config: ConfigDict) -> Settings:
    """Checks a config and loads what it names.

    Raises:
      ValueError: If a value makes no sense, naming the field, what is expected and what came.
      MissingExtraError: If a package of an extra is missing, naming the extra.
    """
    _check_numbers(config)
    check_rl(config)
    _check_success(config.task)
    methods = parse_methods(config.methods, group_size=config.rl.group_size)
    if not config.task.binary:
        check_graded([method.estimator for method in methods], "methods", "task.binary")
    task = _make_task(config.task)
    for name, problems in (("train", task.train), ("held-out", task.held_out)):
        if not problems:
            raise ValueError(f"task: expected at least one {name} problem, got none")
    if shared := shared_prompts(task.train, task.held_out):
        runs.say(
            f"warning: {shared} of the {len(task.held_out)} held-out problems have the prompt of a "
            "problem to train on: results on them tell how much is remembered"
        )
    tokenizer = _make_tokenizer(config.tokenizer, task)
    train, held_out = encode(task.train, task.held_out, tokenizer)
    length = _prompt_length(config, train, held_out)
    return Settings(
        config,
        task,
        tokenizer,
        train,
        held_out,
        _encode_answers(config, task, tokenizer) if config.sft.steps else None,
        _model_config(config, tokenizer, length),
        methods,
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
    if settings.config.model.pretrained:
        folder = Path(settings.config.model.pretrained)
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
    folder = settings.config.model.pretrained
    if folder:
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
        "sft.steps": 0,
        "sft.batch_size": 1,
        "sft.warmup_steps": 0,
        "sft.weight_decay": 0,
        "sft.log_every": 1,
        "sft.save_every": 1,
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
        return reasoning.make_reasoning_task(
            task.dataset,
            train_size=task.train_size,
            held_out_size=task.held_out_size,
            seed=task.seed,
            template=task.template,
            answer_template=task.answer_template,
            options=task.options.to_dict(),
            verifier=task.verifier,
            progress=runs.progress,
        )
    from maxpo.lm.tasks import files

    for field in ("train_path", "held_out_path"):
        if not task[field]:
            raise ValueError(f"task.{field}: expected a JSON-lines file, got none")
    return files.make_file_task(
        task.train_path,
        task.held_out_path,
        prompt_field=task.prompt_field,
        # A flag of the command line cannot be None.
        answer_field=None if task.answer_field in (None, "", "None") else task.answer_field,
        template=task.template,
        verifier=task.verifier,
    )


def _make_tokenizer(name: str, task: text.TextTask) -> tokenizers.Tokenizer:
    if name != "characters":
        return tokenizers.load_tokenizer(name)
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
    config: ConfigDict, tokenizer: tokenizers.Tokenizer, prompt_length: int
) -> TransformerConfig:
    context_length = config.model.context_length or prompt_length + config.rl.max_new_tokens
    if config.model.pretrained:
        model = pretrained.load_config(
            config.model.pretrained, context_length=context_length, **_model_options(config)
        )
    else:
        model = make_config(
            config.model.size,
            vocab_size=config.model.vocab_size or tokenizer.vocab_size,
            context_length=context_length,
            **{**_model_options(config), **config.model.overrides.to_dict()},
        )
    if model.vocab_size < tokenizer.vocab_size and config.model.pretrained:
        raise ValueError(
            f"tokenizer: expected at most the {model.vocab_size} tokens of the checkpoint "
            f"{config.model.pretrained}, such as its own "
            f"{Path(config.model.pretrained, 'tokenizer.json')}, got {config.tokenizer!r} with "
            f"{tokenizer.vocab_size}"
        )
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size: expected at least the {tokenizer.vocab_size} tokens of the "
            f"tokenizer, got {model.vocab_size}"
        )
    if config.model.pretrained:
        pretrained.check_pretrained(config.model.pretrained, model)
    return model


def _model_options(config: ConfigDict) -> dict[str, Any]:
    return {name: config.model[name] for name in ("dtype", "param_dtype", "remat")}
