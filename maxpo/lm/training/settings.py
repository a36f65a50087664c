"""A config becomes what training needs, or an error that says what is wrong with it."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import losses, parallel, runs, training
from maxpo.lm.model import pretrained
from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks import text, tokenizers
from maxpo.lm.training.failures import as_lowest
from maxpo.methods import Method, parse_methods

LOSSES = ("score_function", "clipped_ratio")
IMPORTANCE_LEVELS = ("token", "sequence")
ZERO_VARIANCE_GROUPS = ("keep", "drop", "oversample")
FAILURES = ("zero", "mask")


class EncodedProblems(NamedTuple):
    """Problems and their prompts as tokens.

    Attributes:
      problems: P problems.
      prompts: Their prompts, padded on the left to one length.
    """

    problems: Sequence[text.Problem]
    prompts: Prompts

    def take(self, indices: np.ndarray) -> "EncodedProblems":
        """The problems of these numbers, in this order."""
        prompts = Prompts(self.prompts.tokens[indices], self.prompts.mask[indices])
        return EncodedProblems([self.problems[index] for index in indices], prompts)


class Settings(NamedTuple):
    """What a config stands for.

    Attributes:
      config: The config itself.
      task: Problems and their verifier.
      tokenizer: Between text and tokens.
      train: Problems to learn from.
      held_out: Problems to judge by.
      answers: To those of `train`, with their end tokens: tokens `[P, T]`, padded on the right, and
        their mask. None without a warm start.
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

    def rewards(self, scores: np.ndarray) -> np.ndarray:
        """What is maximized: the verifier's scores, or with `task.binary` whether they succeed.

        Args:
          scores: `[..., n]`, NaN where the verification failed. Such a sample gets a reward that is
            never above that of a scored one: 0, or with graded scores that of `as_lowest`.
        """
        if self.config.task.binary:
            return self.correct(scores).astype(np.float32)
        return as_lowest(scores)

    def correct(self, scores: np.ndarray) -> np.ndarray:
        """Which samples count for pass@k: those that were scored, from `task.success` on."""
        return scores >= self.config.task.success


def make_settings(config: ConfigDict) -> Settings:
    """Checks a config and loads what it names.

    Raises:
      ValueError: If a value makes no sense, naming the field, what is expected and what came.
      MissingExtraError: If a package of an extra is missing, naming the extra.
    """
    _check_numbers(config)
    _check_choices(config)
    if not config.methods:
        raise ValueError("methods: expected at least one, such as maxpo:k=8; got none")
    methods = parse_methods(config.methods, group_size=config.rl.group_size)
    if not config.task.binary:
        training.check_graded([method.estimator for method in methods], "methods", "task.binary")
    task = _make_task(config.task)
    for name, problems in (("train", task.train), ("held-out", task.held_out)):
        if not problems:
            raise ValueError(f"task: expected at least one {name} problem, got none")
    if shared := _shared(task):
        runs.say(
            f"warning: {shared} of the {len(task.held_out)} held-out problems have the prompt of a "
            "problem to train on: results on them tell how much is remembered"
        )
    tokenizer = _make_tokenizer(config.tokenizer, task)
    prompts = [tokenizer.encode(problem.prompt) for problem in (*task.train, *task.held_out)]
    length = _prompt_length(config, prompts)
    # Arrays of the host, which compiled functions take as they take the device's.
    tokens: Any
    mask: Any
    tokens, mask = tokenizers.pad(prompts, length=length, pad_id=tokenizer.pad_id, side="left")
    count = len(task.train)
    return Settings(
        config,
        task,
        tokenizer,
        EncodedProblems(task.train, Prompts(tokens[:count], mask[:count])),
        EncodedProblems(task.held_out, Prompts(tokens[count:], mask[count:])),
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
    held_out = f"{len(task.held_out)} problems, {_shared(task)} of them in train"
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
      key: Of random parameters.
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


def powers_up_to(n: int) -> tuple[int, ...]:
    """1, 2, 4, .. and n: the k of every curve over n samples.

    >>> powers_up_to(12)
    (1, 2, 4, 8, 12)
    """
    powers = [2**power for power in range(n.bit_length()) if 2**power < n]
    return (*powers, n)


def _check_numbers(config: ConfigDict) -> None:
    least = {
        "seed": 0,
        "seeds": 1,
        "model": {"vocab_size": 0, "context_length": 0},
        "sft": {
            "steps": 0,
            "batch_size": 1,
            "warmup_steps": 0,
            "weight_decay": 0,
            "log_every": 1,
            "save_every": 1,
        },
        "rl": {
            "steps": 1,
            "prompts": 1,
            "group_size": 2,
            "max_new_tokens": 1,
            "sampling_batches": 1,
            "epochs": 1,
            "minibatches": 1,
            "micro_batches": 1,
            "oversampling": 1,
            "warmup_steps": 0,
            "save_every": 1,
            "kl_coefficient": 0,
            "entropy_coefficient": 0,
            "weight_decay": 0,
            "eval_k": 1,
        },
        "evaluation": {"samples": 1, "prompts": 1, "temperature": 0},
        "verification": {"workers": 1},
    }
    positive = (
        *("sft.learning_rate", "sft.max_gradient_norm", "sft.final_rate"),
        *("rl.learning_rate", "rl.max_gradient_norm", "rl.temperature", "rl.length"),
        *("verification.time_limit", "verification.memory_limit"),
    )
    runs.check_numbers(
        config,
        at_least=dict(_flat(least)),
        above=dict.fromkeys(positive, 0),
        finite=("rl.clip_low", "rl.clip_high", "rl.clip_dual"),
        or_infinite=("sft.max_gradient_norm", "rl.max_gradient_norm", "rl.clip_high"),
    )
    rl = config.rl
    cut = rl.minibatches * rl.micro_batches
    for name, size in (
        ("rl.prompts / rl.sampling_batches", rl.prompts // rl.sampling_batches),
        ("rl.prompts / (rl.minibatches * rl.micro_batches)", rl.prompts // cut),
        ("sft.batch_size", config.sft.batch_size),
        ("evaluation.prompts", config.evaluation.prompts),
    ):
        parallel.check_batch(name, size)
    for name, whole, part in (
        ("rl.sampling_batches", rl.prompts, rl.sampling_batches),
        ("rl.minibatches * rl.micro_batches", rl.prompts, rl.minibatches * rl.micro_batches),
    ):
        if whole % part:
            raise ValueError(f"{name}: expected a divisor of rl.prompts = {whole}, got {part}")
    samples = config.evaluation.samples
    if rl.eval_k not in powers_up_to(samples):
        raise ValueError(
            f"rl.eval_k: expected one of the k that are evaluated, {powers_up_to(samples)} for "
            f"evaluation.samples = {samples}, got {rl.eval_k}"
        )
    if rl.eval_k > rl.group_size:
        raise ValueError(
            f"rl.eval_k: expected at most rl.group_size = {rl.group_size}, got {rl.eval_k}"
        )


def _check_choices(config: ConfigDict) -> None:
    rl = config.rl
    for name, value, known in (
        ("rl.loss", rl.loss, LOSSES),
        ("rl.importance_level", rl.importance_level, IMPORTANCE_LEVELS),
        ("rl.loss_aggregation", rl.loss_aggregation, get_args(losses.LossAggregation)),
        ("rl.kl_estimator", rl.kl_estimator, get_args(losses.KLEstimator)),
        ("rl.zero_variance_groups", rl.zero_variance_groups, ZERO_VARIANCE_GROUPS),
        ("rl.failures", rl.failures, FAILURES),
        ("task.kind", config.task.kind, ("reasoning", "jsonl")),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
    if rl.loss == "score_function" and rl.epochs * rl.minibatches > 1:
        raise ValueError(
            "rl.loss: score_function is only right for the policy that drew the samples; expected "
            f"clipped_ratio for {rl.epochs} epochs of {rl.minibatches} minibatches"
        )
    if rl.importance_level == "sequence" and rl.loss_aggregation == "token":
        raise ValueError(
            "rl.loss_aggregation: expected constant or sequence for rl.importance_level=sequence, "
            "got 'token'"
        )
    if rl.length != 1 and (rl.loss_aggregation != "constant" or rl.importance_level == "sequence"):
        raise ValueError(
            "rl.length: expected 1 for all but rl.loss_aggregation=constant at "
            f"rl.importance_level=token, got {rl.length}"
        )
    if rl.kl_coefficient and rl.kl_estimator == "k1":
        raise ValueError("rl.kl_estimator: expected k2 or k3, k1's gradient is only noise")
    if rl.zero_variance_groups == "oversample" and rl.oversampling < 2:
        raise ValueError(
            f"rl.oversampling: expected at least 2 to oversample, got {rl.oversampling}"
        )
    if not 0 <= rl.clip_low <= 1 or not rl.clip_high >= 0:
        raise ValueError(
            "rl.clip_low, rl.clip_high: expected 0 <= clip_low <= 1 and clip_high >= 0, got "
            f"{rl.clip_low} and {rl.clip_high}"
        )
    if rl.clip_dual and not rl.clip_dual > 1:
        raise ValueError(
            f"rl.clip_dual: expected a ratio above 1, or 0 for none, got {rl.clip_dual}"
        )
    if rl.clip_dual and rl.loss != "clipped_ratio":
        raise ValueError(
            f"rl.clip_dual: expected 0 for rl.loss={rl.loss}, which has no ratio, got "
            f"{rl.clip_dual}"
        )
    _check_success(config.task)


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
    from maxpo.lm.tasks import jsonl

    for field in ("train_path", "held_out_path"):
        if not task[field]:
            raise ValueError(f"task.{field}: expected a JSON-lines file, got none")
    return jsonl.make_jsonl_task(
        task.train_path,
        task.held_out_path,
        prompt_field=task.prompt_field,
        # A flag of the command line cannot be None.
        answer_field=None if task.answer_field in (None, "", "None") else task.answer_field,
        template=task.template,
        verifier=task.verifier,
    )


def _shared(task: text.TextTask) -> int:
    """How many held-out problems have the prompt of a problem to train on."""
    train = {problem.prompt for problem in task.train}
    return sum(problem.prompt in train for problem in task.held_out)


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


def _prompt_length(config: ConfigDict, prompts: Sequence[Sequence[int]]) -> int:
    """The longest prompt, which must leave room for the completion."""
    lengths = [len(prompt) for prompt in prompts]
    longest, context = max(lengths), config.model.context_length
    if min(lengths) == 0:
        raise ValueError(
            f"task: expected prompts of at least one token, got none in number {lengths.index(0)}"
        )
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


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tree.items():
        nested = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        pairs += nested or [(prefix + name, value)]
    return pairs
