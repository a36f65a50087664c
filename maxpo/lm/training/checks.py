"""Whether the numbers and choices of a training run make sense, before any work."""

from collections.abc import Sequence
from typing import get_args

from ml_collections import ConfigDict

from maxpo import losses, parallel, runs
from maxpo.lm.training.named_optimizers import check_optimizer
from maxpo.lm.training.variance_ratio import has_variance_ratio
from maxpo.methods import Method
from maxpo.order_statistics import powers_up_to

__all__ = [
    "FAILURES",
    "IMPORTANCE_LEVELS",
    "LOSSES",
    "TRUNCATED",
    "ZERO_VARIANCE_GROUPS",
    "check_b2",
    "check_diagnostics",
    "check_rl",
]

LOSSES = ("score_function", "clipped_ratio")
IMPORTANCE_LEVELS = ("token", "sequence")
ZERO_VARIANCE_GROUPS = ("keep", "drop", "oversample")
FAILURES = ("zero", "mask")
TRUNCATED = ("keep", "mask", "penalty")

_AT_LEAST = {
    "rl.steps": 1,
    "rl.prompts": 1,
    "rl.group_size": 2,
    "rl.max_new_tokens": 1,
    "rl.sampling_batches": 1,
    "rl.epochs": 1,
    "rl.minibatches": 1,
    "rl.micro_batches": 1,
    "rl.oversampling": 1,
    "rl.warmup_steps": 0,
    "rl.save_every": 1,
    "rl.kl_coefficient": 0,
    "rl.entropy_coefficient": 0,
    "rl.b2": 0,
    "rl.weight_decay": 0,
    "rl.eval_k": 1,
    "rl.truncation_penalty": 0,
    "evaluation.every": 0,
    "evaluation.patience": 0,
    "evaluation.samples": 1,
    "evaluation.prompts": 1,
    "evaluation.temperature": 0,
}
_WHOLE = frozenset(_AT_LEAST) - {
    "rl.kl_coefficient",
    "rl.entropy_coefficient",
    "rl.b2",
    "rl.weight_decay",
    "rl.truncation_penalty",
    "evaluation.temperature",
}
_POSITIVE = ("rl.learning_rate", "rl.max_gradient_norm", "rl.temperature", "rl.length")


def check_b2(field: str, b2: float) -> None:
    """Raises ValueError, naming the field, if a decay of second moments never forgets."""
    if b2 >= 1:
        raise ValueError(f"{field}: expected less than 1, got {b2}")


def check_rl(config: ConfigDict, *, trains: bool = True) -> None:
    """Checks the `rl` and the `evaluation` of a config.

    Args:
      config: That of a study.
      trains: Whether anything is to be learned; else `rl.eval_k` is not read.

    Raises:
      ValueError: If a value makes no sense, naming the field, what is expected and what came.
    """
    runs.check_numbers(
        config,
        at_least=_AT_LEAST,
        above=dict.fromkeys(_POSITIVE, 0),
        finite=("rl.clip_low", "rl.clip_high", "rl.clip_dual"),
        or_infinite=("rl.max_gradient_norm", "rl.clip_high"),
        whole=_WHOLE,
    )
    check_b2("rl.b2", config.rl.b2)
    check_optimizer("rl", config.rl)
    _check_sizes(config)
    if trains:
        _check_eval_k(config)
    _check_choices(config.rl)
    _check_truncated(config.rl)
    if config.evaluation.patience and not config.evaluation.every:
        raise ValueError(
            "evaluation.patience: expected 0 for evaluation.every=0, without which there is no "
            f"evaluation to wait for, got {config.evaluation.patience}"
        )
    _check_loss(config.rl)


def check_diagnostics(config: ConfigDict, methods: Sequence[Method]) -> None:
    """Checks the `diagnostics` of a config.

    Raises:
      ValueError: If a value makes no sense, naming the field, what is expected and what came.
    """
    runs.check_numbers(
        config, at_least={"diagnostics.gradient_variance": 0, "diagnostics.prompts": 2}
    )
    every, prompts = config.diagnostics.gradient_variance, config.diagnostics.prompts
    if not every:
        return
    if not any(map(has_variance_ratio, methods)):
        raise ValueError(
            "diagnostics.gradient_variance: expected 0 where no method has a number above 1 "
            f"as k, got {every}"
        )
    rl = config.rl
    if prompts > rl.prompts:
        raise ValueError(
            f"diagnostics.prompts: expected at most rl.prompts = {rl.prompts}, got {prompts}"
        )
    drawn = rl.prompts // rl.sampling_batches
    if 2 * prompts % drawn:
        raise ValueError(
            "diagnostics.prompts: expected two groups each to be a multiple of rl.prompts / "
            f"rl.sampling_batches = {drawn} groups, got {prompts} prompts"
        )


def _check_sizes(config: ConfigDict) -> None:
    rl = config.rl
    cut = rl.minibatches * rl.micro_batches
    for name, parts in (
        ("rl.sampling_batches", rl.sampling_batches),
        ("rl.minibatches * rl.micro_batches", cut),
    ):
        runs.check_divisor(name, parts, of="rl.prompts", whole=rl.prompts)
    for name, size in (
        ("rl.prompts / rl.sampling_batches", rl.prompts // rl.sampling_batches),
        ("rl.prompts / (rl.minibatches * rl.micro_batches)", rl.prompts // cut),
        ("evaluation.prompts", config.evaluation.prompts),
    ):
        parallel.check_batch(name, size)


def _check_eval_k(config: ConfigDict) -> None:
    rl, samples = config.rl, config.evaluation.samples
    if rl.eval_k not in powers_up_to(samples):
        raise ValueError(
            f"rl.eval_k: expected one of the k that are evaluated, {powers_up_to(samples)} for "
            f"evaluation.samples = {samples}, got {rl.eval_k}"
        )
    if rl.eval_k > rl.group_size:
        raise ValueError(
            f"rl.eval_k: expected at most rl.group_size = {rl.group_size}, got {rl.eval_k}"
        )


def _check_choices(rl: ConfigDict) -> None:
    for name, value, known in (
        ("rl.loss", rl.loss, LOSSES),
        ("rl.importance_level", rl.importance_level, IMPORTANCE_LEVELS),
        ("rl.loss_aggregation", rl.loss_aggregation, get_args(losses.LossAggregation)),
        ("rl.kl_estimator", rl.kl_estimator, get_args(losses.KLEstimator)),
        ("rl.zero_variance_groups", rl.zero_variance_groups, ZERO_VARIANCE_GROUPS),
        ("rl.failures", rl.failures, FAILURES),
        ("rl.truncated", rl.truncated, TRUNCATED),
        ("rl.packing", rl.packing, (False, True)),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}; got {value!r}")


def _check_truncated(rl: ConfigDict) -> None:
    is_penalty = rl.truncated == "penalty"
    if is_penalty != (rl.truncation_penalty > 0):
        expected = "more than 0" if is_penalty else "0"
        raise ValueError(
            f"rl.truncation_penalty: expected {expected} for rl.truncated={rl.truncated}, got "
            f"{rl.truncation_penalty}"
        )


def _check_loss(rl: ConfigDict) -> None:
    if rl.loss == "score_function" and rl.epochs * rl.minibatches > 1:
        raise ValueError(
            f"rl.loss: expected clipped_ratio for {rl.epochs} epochs of {rl.minibatches} "
            "minibatches, got score_function, which is only right for the policy that drew the "
            "samples"
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
        raise ValueError("rl.kl_estimator: expected k2 or k3, got k1, whose gradient is only noise")
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
