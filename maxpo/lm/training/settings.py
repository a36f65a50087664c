"""A config becomes what training needs, or an error that says what is wrong with it."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel, runs
from maxpo.lm.model import pretrained, sharding
from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.model.lora import LoRA
from maxpo.lm.model.sharding import RULES
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks import text, tokenizers
from maxpo.lm.training._digests import checkpoint_digest, tokenizer_digest
from maxpo.lm.training.checks import check_b2, check_diagnostics, check_rl
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.handover import checkpoint_folder
from maxpo.lm.training.named_optimizers import check_optimizer
from maxpo.lm.training.problems import (
    EncodedProblems,
    encode,
    problems_per_step,
    shared_prompts,
)
from maxpo.lm.training.task_settings import check_task, load_task, without_long_prompts
from maxpo.methods import Method, check_graded, parse_methods

__all__ = ["Settings", "digests", "layout", "make_model", "make_settings"]

EXPORTS = ("", "float32", "bfloat16")


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
      lora: The adapters that alone are trained. None: all parameters are.
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
    lora: LoRA | None

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
    check_rl(config, trains=trains)
    check_task(config.task)
    methods = parse_methods(config.methods, group_size=config.rl.group_size, adaptive=True)
    check_diagnostics(config, methods)
    names = [method.estimator for method in methods]
    if not config.task.binary:
        check_graded(names, "methods", "task.binary")
    if config.rl.truncated == "penalty":
        check_graded(names, "methods", "rl.truncated=penalty")
    named = config.model.pretrained
    checkpoint = checkpoint_folder(named) if named else None
    lora = _lora(config.model.lora, checkpoint)
    task, is_chat = load_task(config.task, checkpoint, trains=trains)
    tokenizer = _make_tokenizer(config.tokenizer, checkpoint, task)
    task = without_long_prompts(config.task.max_prompt_length, task, tokenizer, start=not is_chat)
    train, held_out = encode(
        task.train, task.held_out, tokenizer, start=not is_chat, batch=_largest_batch(config)
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
        lora,
    )


def digests(settings: Settings) -> dict[str, str]:
    """What a config only names: problems, tokenizer and checkpoint, in a few words each.

    Part of what tells a run from another: a file that was changed since, or a package that makes
    other problems now, is refused as another config is.
    """
    task = settings.task
    shared = shared_prompts(task.train, task.held_out)
    held_out = f"{len(task.held_out)} problems, {shared} of them in train"
    found = {
        "train": f"{len(task.train)} problems, {text.digest(task.train)}",
        "held_out": f"{held_out}, {text.digest(task.held_out)}",
        "tokenizer": tokenizer_digest(settings.tokenizer),
    }
    if (folder := settings.checkpoint) is not None:
        found["pretrained"] = checkpoint_digest(folder)
    return found


def make_model(settings: Settings, key: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
    """The policy before any training: its structure and its parameters, laid out on the mesh.

    Args:
      settings: Name a checkpoint or a size.
      key: PRNG key of random parameters.
    """
    folder = settings.checkpoint
    if folder is not None:
        model = pretrained.load_pretrained(
            folder,
            context_length=settings.model.context_length,
            fully_sharded=settings.config.mesh.fully_sharded,
            **_model_options(settings.config),
        )
        return nnx.split(model)

    def init(key: jax.Array) -> Transformer:
        return Transformer(settings.model, rngs=nnx.Rngs(key))

    @jax.jit
    def params(key: jax.Array) -> nnx.State:
        state = nnx.state(init(key))
        return parallel.constrain_to(state, layout(settings.config, state))

    return nnx.graphdef(nnx.eval_shape(init, key)), params(key)


def layout(config: ConfigDict, tree: Any) -> Any:
    """Where parameters or a training state lie on the mesh of a config."""
    return sharding.layout(tree, RULES, fully_sharded=config.mesh.fully_sharded)


def _largest_batch(config: ConfigDict) -> int:
    """The most problems that a step takes."""
    return max(problems_per_step(config.rl), config.sft.batch_size if config.sft.steps else 1)


def _check_numbers(config: ConfigDict) -> None:
    least = {
        "seed": 0,
        "seeds": 1,
        "model.vocab_size": 0,
        "model.context_length": 0,
        "model.lora.rank": 0,
        "task.max_prompt_length": 0,
        "sft.steps": 0,
        "sft.batch_size": 1,
        "sft.warmup_steps": 0,
        "sft.b2": 0,
        "sft.weight_decay": 0,
        "sft.log_every": 1,
        "sft.save_every": 1,
        "log.every": 0,
        "log.groups": 1,
        "verification.workers": 1,
    }
    positive = (
        *("sft.learning_rate", "sft.max_gradient_norm", "sft.final_rate", "model.lora.alpha"),
        *("verification.time_limit", "verification.memory_limit"),
    )
    runs.check_numbers(
        config,
        at_least=least,
        above=dict.fromkeys(positive, 0),
        or_infinite=("sft.max_gradient_norm",),
    )
    check_b2("sft.b2", config.sft.b2)
    check_optimizer("sft", config.sft)
    parallel.check_batch("sft.batch_size", config.sft.batch_size)
    if config.model.export not in EXPORTS:
        raise ValueError(
            f"model.export: expected one of float32, bfloat16, or nothing; got "
            f"{config.model.export!r}"
        )


def _lora(section: ConfigDict, checkpoint: Path | None) -> LoRA | None:
    if not section.rank:
        return None
    if checkpoint is None:
        raise ValueError(
            "model.lora.rank: expected 0 without model.pretrained, as random weights are not worth "
            f"freezing, got {section.rank}"
        )
    try:
        return LoRA(section.rank, section.alpha, section.targets)
    except ValueError as error:
        raise ValueError(f"model.{error}") from error


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
        # The prompt has the prefix already.
        rest = problem.answer.removeprefix(config.task.answer_prefix)
        answers.append([*tokenizer.encode(rest), tokenizer.eos_id])
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
