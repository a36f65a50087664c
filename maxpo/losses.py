"""Losses that turn advantages into policy gradients.

Conventions, shared by every function of this module:

* An advantage `A_i` is scaled such that `1/N sum_i A_i grad log pi(y_i)` estimates the gradient of
  the objective. A loss is therefore a plain mean over samples and needs no further factor. It is a
  scalar to be *minimized*.
* The last axis (the last but one at token level) is the group; all leading axes are batch. Means
  are pooled over all kept samples of the call, so groups with fewer kept samples weigh less. Use
  `jax.vmap` to get one loss for each group instead.
* `where` is boolean, True = keep. A masked position counts in no numerator and no denominator, and
  may hold anything, NaN included: the value does not depend on it and the gradient with respect to
  it is exactly 0. Where nothing is kept, the loss and its gradient are 0. A NaN at a position that
  is *kept* is never hidden.
* Advantages, behavior and reference log-probabilities are constants: no gradient flows into them.
* bfloat16, float16, integers and booleans are cast to float32 first; float64 stays float64.
* From finite numbers no result is NaN, with one exception: see `clipped_ratio_loss`. A ratio beyond
  the range of the dtype is infinite, and so is what honestly depends on it.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from maxpo._numbers import as_floats, same_width

__all__ = [
    "KLEstimator",
    "LossAggregation",
    "RatioDiagnostics",
    "clipped_ratio_loss",
    "entropy",
    "kl_penalty",
    "masked_mean",
    "ratio_diagnostics",
    "reduce_tokens",
    "score_function_loss",
    "sequence_log_probs",
    "token_clipped_ratio_loss",
    "token_score_function_loss",
]

LossAggregation = Literal["constant", "sequence", "token"]
KLEstimator = Literal["k1", "k2", "k3"]


class RatioDiagnostics(NamedTuple):
    """How far the policy has moved from the one that sampled; see `ratio_diagnostics`."""

    clip_fraction: Array
    approximate_kl: Array
    mean_ratio: Array


def masked_mean(values: ArrayLike, *, where: ArrayLike | None = None) -> Array:
    """Mean over the kept entries of an array of any shape.

    `sum_{i kept} values_i / #{i kept}`; 0, not NaN, where nothing is kept.

    Args:
      values: array of any shape.
      where: boolean, broadcastable to `values`; True = keep. None keeps everything.

    Returns:
      A scalar, on the scale of `values`.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If `where` does not broadcast to `values`.

    >>> print(masked_mean([1.0, 2.0, float("nan")], where=jnp.array([True, True, False])))
    1.5
    """
    values = as_floats(values, "expected values")
    mask = _mask(where, values.shape)
    return jnp.sum(jnp.where(mask, values, 0)) / _count(mask, values.dtype)


def reduce_tokens(
    values: ArrayLike,
    *,
    loss_aggregation: LossAggregation = "constant",
    length: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    """Reduces one value for each token to one scalar, under a named aggregation.

    With `|y_i|` the number of kept tokens of sequence `i` and `n` the number of sequences that keep
    at least one token:

    * `"constant"`: `1/n sum_i 1/length sum_t values_it`. Dr. GRPO with `length` the token budget:
      verl's `seq-mean-token-sum` with length 1, TRL's `dr_grpo`.
    * `"sequence"`: `1/n sum_i 1/|y_i| sum_t values_it`. GRPO: verl's `seq-mean-token-mean`, TRL's
      `grpo`.
    * `"token"`: `sum_it values_it / sum_i |y_i|`. DAPO: verl's `token-mean`, TRL's `dapo`, and
      `bnpo` where each micro-batch is reduced by itself.

    What becomes of an unbiased policy gradient, since `log pi(y_i) = sum_t log pi(y_it | past)`:

    * `"constant"` is the only one that keeps it: it estimates the gradient of the objective, times
      `1/length`. The default `length=1` is exact.
    * `"token"` divides the exact estimate of each call by the mean length of that call. Its
      direction is the exact one, batch by batch; its expectation is not, because the lengths are
      random too. It also depends on which sequences share a call, so a mean over micro-batches
      is not the value of the whole batch.
    * `"sequence"` divides each sample's term by its own length, which changes the direction: long
      sequences count less for each token, right or wrong.

    All three agree up to the factor `T` where all sequences have the same length `T`.

    See "Understanding R1-Zero-Like Training: A Critical Perspective"
    (https://arxiv.org/abs/2503.20783) and "DAPO: An Open-Source LLM Reinforcement Learning System
    at Scale" (https://arxiv.org/abs/2503.14476).

    Args:
      values: `[..., N, T]`.
      loss_aggregation: `"constant"`, `"sequence"` or `"token"`.
      length: the divisor of `"constant"`; not to be given with another aggregation.
      where: boolean, True = keep; of the rank of `values`, axes of size 1 broadcast. None keeps
        everything. The rank is not padded: a mask of samples is `where[..., None]`.

    Returns:
      A scalar, on the scale of a sum over tokens divided by the length of the aggregation.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If the aggregation is unknown, the length is not positive and finite or not used,
        or shapes do not match.

    >>> mask = jnp.array([[True, True, True], [True, False, False]])
    >>> values = jnp.array([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
    >>> for name in ("constant", "sequence", "token"):
    ...     print(reduce_tokens(values, loss_aggregation=name, where=mask))
    4.0
    3.0
    2.0
    """
    values = as_floats(values, "expected values")
    _check_tokens("values", values, where)
    if loss_aggregation not in get_args(LossAggregation):
        raise ValueError(
            f"expected loss_aggregation to be one of {get_args(LossAggregation)}, "
            f"got {loss_aggregation!r}"
        )
    if not 0 < length < math.inf:
        raise ValueError(f"expected a positive, finite length, got {length!r}")
    if loss_aggregation != "constant" and length != 1:
        raise ValueError(
            f'expected length only with loss_aggregation="constant", got length={length!r} with '
            f"loss_aggregation={loss_aggregation!r}"
        )

    mask = _mask(where, values.shape)
    if loss_aggregation == "token":
        return masked_mean(values, where=mask)
    totals = jnp.sum(jnp.where(mask, values, 0), axis=-1)
    divisor = _count(mask, totals.dtype, axis=-1) if loss_aggregation == "sequence" else length
    return masked_mean(totals / divisor, where=jnp.any(mask, axis=-1))


def sequence_log_probs(
    log_probs: ArrayLike, *, length_normalized: bool = False, where: ArrayLike | None = None
) -> Array:
    """Log-probabilities of whole sequences, from those of their tokens.

    `log pi(y_i) = sum_t log pi(y_it | past)`, divided by `|y_i|` if `length_normalized`.

    The sample-level functions applied to the result are the sequence-level methods: with the sum,
    `score_function_loss` is the exact policy gradient and `clipped_ratio_loss` has the exact
    importance ratio of the sequence; with the length-normalised sum, `clipped_ratio_loss` is GSPO.

    See "Group Sequence Policy Optimization" (https://arxiv.org/abs/2507.18071).

    Args:
      log_probs: `[..., N, T]`, of each sampled token.
      length_normalized: divide by the number of kept tokens.
      where: boolean, True = keep; of the rank of `log_probs`, axes of size 1 broadcast.

    Returns:
      `[..., N]`; 0 for a sequence without kept tokens. Such sequences still count as samples: pass
      `where=where.any(-1)` on to the sample-level function.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If the shapes do not match.

    >>> print(sequence_log_probs([[-1.0, -2.0, 7.0]], where=jnp.array([[True, True, False]])))
    [-3.]
    """
    log_probs = as_floats(log_probs, "expected log_probs")
    _check_tokens("log_probs", log_probs, where)

    mask = _mask(where, log_probs.shape)
    totals = jnp.sum(jnp.where(mask, log_probs, 0), axis=-1)
    return totals / _count(mask, totals.dtype, axis=-1) if length_normalized else totals


def score_function_loss(
    log_probs: ArrayLike, advantages: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """Score-function (REINFORCE) loss of whole samples.

    `-1/N sum_i A_i log pi(y_i)`. Its gradient is minus the estimate of the objective's gradient
    that the advantages stand for: unbiased if they are and the samples come from the policy.

    See "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning"
    (https://doi.org/10.1007/BF00992696).

    Args:
      log_probs: `[..., N]`, of each sample (of each whole sequence: see `sequence_log_probs`).
      advantages: `[..., N]`.
      where: boolean, broadcastable to `[..., N]`; True = keep. None keeps everything.

    Returns:
      A scalar: minus the mean over all kept samples. Only its gradient has a meaning.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If the shapes do not match.

    >>> jax.grad(score_function_loss)(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, -1.0]))
    Array([-0.5,  0.5], dtype=float32)
    """
    log_probs = _group(log_probs)
    mask, log_probs, advantages = _clean(where, log_probs, advantages=advantages)
    return masked_mean(-advantages * log_probs, where=mask)


def token_score_function_loss(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    loss_aggregation: LossAggregation = "constant",
    length: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    """Score-function (REINFORCE) loss from token log-probabilities.

    `reduce_tokens(-A_i log pi(y_it | past))`. With the defaults (`"constant"`, `length=1`) this is
    `score_function_loss(sequence_log_probs(log_probs), advantages)`, so the gradient stays
    unbiased; `"constant"` with another length scales it by `1/length`; `"token"` divides it by the
    mean length of the call; `"sequence"` bends it. See `reduce_tokens` for the exact statement.

    See "Understanding R1-Zero-Like Training: A Critical Perspective"
    (https://arxiv.org/abs/2503.20783).

    Args:
      log_probs: `[..., N, T]`, of each sampled token.
      advantages: `[..., N]`, one for each sequence.
      loss_aggregation: `"constant"`, `"sequence"` or `"token"`.
      length: the divisor of `"constant"`.
      where: boolean, True = keep; of the rank of `log_probs`, axes of size 1 broadcast. None keeps
        everything.

    Returns:
      A scalar on the scale of `reduce_tokens`. Only its gradient has a meaning.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: As `reduce_tokens`, or if the shapes do not match.

    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.25]]))
    >>> jax.grad(token_score_function_loss)(log_probs, jnp.array([1.0, -1.0]))
    Array([[-0.5, -0.5],
           [ 0.5,  0.5]], dtype=float32)
    """
    advantages = _per_token(advantages, log_probs, where)
    mask, log_probs, advantages = _clean(where, log_probs, advantages=advantages)
    return reduce_tokens(
        -advantages * log_probs, loss_aggregation=loss_aggregation, length=length, where=mask
    )


def clipped_ratio_loss(
    log_probs: ArrayLike,
    behavior_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """Clipped importance-ratio (PPO) loss of whole samples.

    With `rho_i = pi(y_i) / behavior(y_i)`,
    `-1/N sum_i min(rho_i A_i, clip(rho_i, 1 - clip_low, 1 + clip_high) A_i)`: the gradient stops
    for `A_i > 0` once `rho_i > 1 + clip_high`, for `A_i < 0` once `rho_i < 1 - clip_low`. On a
    bound itself it still flows.

    For `A_i < 0` nothing bounds a large ratio: one of `exp(100)` makes loss and gradient infinite
    in float32, as they should be, and the update useless. `clip_dual = c` is the dual clip: the
    term becomes `max(min(..), c A_i)`, whose gradient stops once `rho_i > c`, too. Where neither
    bound is set (`clip_high=inf`, no dual clip) and ratios overflow under advantages of both signs,
    the mean is inf - inf = NaN.

    Special cases. At `rho = 1` the gradient is that of `score_function_loss`, for any clip.
    `clip_low=1` and `clip_high=inf` switch the two sides off. With both off the loss is the plain
    importance-sampled one: unbiased off-policy for K = 1; for K > 1 it estimates the gradient with
    respect to one of the K samples while the other K - 1 still come from the behavior policy
    (times K), because the advantages compare with samples of that policy.

    See "Proximal Policy Optimization Algorithms" (https://arxiv.org/abs/1707.06347); for the
    asymmetric clip "DAPO: An Open-Source LLM Reinforcement Learning System at Scale"
    (https://arxiv.org/abs/2503.14476); for the dual clip "Mastering Complex Control in MOBA Games
    with Deep Reinforcement Learning" (https://arxiv.org/abs/1912.09729).

    Args:
      log_probs: `[..., N]`, of each sample under the policy.
      behavior_log_probs: `[..., N]`, under the policy that drew the samples.
      advantages: `[..., N]`.
      clip_low: how far the ratio may fall below 1, in `[0, 1]`.
      clip_high: how far the ratio may rise above 1, in `[0, inf]`.
      clip_dual: the ratio above which a negative advantage stops counting, more than 1; None
        switches it off.
      where: boolean, broadcastable to `[..., N]`; True = keep. None keeps everything.

    Returns:
      A scalar: minus the mean over all kept samples.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If a clip is outside its range, or shapes do not match.

    >>> behavior = jnp.log(jnp.array([0.5, 0.5]))
    >>> log_probs = jnp.log(jnp.array([0.75, 0.25]))  # ratios 1.5, clipped to 1.2, and 0.5
    >>> print(f"{clipped_ratio_loss(log_probs, behavior, jnp.array([1.0, 1.0])):.3f}")
    -0.850
    """
    clip = _Clip(clip_low, clip_high, clip_dual)
    log_probs = _group(log_probs)
    mask, log_probs, behavior, advantages = _clean(
        where, log_probs, behavior_log_probs=behavior_log_probs, advantages=advantages
    )
    surrogate = clip.surrogate(log_probs - behavior, advantages)
    return masked_mean(-surrogate, where=mask)


def token_clipped_ratio_loss(
    log_probs: ArrayLike,
    behavior_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    loss_aggregation: LossAggregation = "constant",
    length: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    """Clipped importance-ratio loss with one ratio for each token (GRPO, DAPO, Dr. GRPO).

    With `rho_it = pi(y_it | past) / behavior(y_it | past)`,
    `reduce_tokens(-min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i))`. For the dual
    clip, and for ratios that overflow, see `clipped_ratio_loss`.

    Special cases. At `rho = 1` the gradient is that of `token_score_function_loss`. GRPO is
    `loss_aggregation="sequence"`; DAPO `"token"` with `clip_high=0.28`; Dr. GRPO `"constant"` with
    `length` the token budget. The ratio of one token does not correct for the prefix it was
    sampled after: off-policy the gradient is right to first order only, even without a clip. For
    one ratio for each sequence see `sequence_log_probs`.

    See "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models"
    (https://arxiv.org/abs/2402.03300) and "DAPO: An Open-Source LLM Reinforcement Learning System
    at Scale" (https://arxiv.org/abs/2503.14476).

    Args:
      log_probs: `[..., N, T]`, of each sampled token under the policy.
      behavior_log_probs: `[..., N, T]`, under the policy that drew the samples.
      advantages: `[..., N]`, one for each sequence.
      clip_low: how far the ratio may fall below 1, in `[0, 1]`.
      clip_high: how far the ratio may rise above 1, in `[0, inf]`.
      clip_dual: the ratio above which a negative advantage stops counting, more than 1; None
        switches it off.
      loss_aggregation: `"constant"`, `"sequence"` or `"token"`.
      length: the divisor of `"constant"`.
      where: boolean, True = keep; of the rank of `log_probs`, axes of size 1 broadcast. None keeps
        everything.

    Returns:
      A scalar on the scale of `reduce_tokens`.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: As `reduce_tokens`, for a clip outside its range, or shapes that do not match.

    >>> behavior = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> log_probs = jnp.log(jnp.array([[0.75, 0.25]]))  # ratios 1.5, clipped to 1.2, and 0.5
    >>> print(f"{token_clipped_ratio_loss(log_probs, behavior, jnp.array([1.0])):.3f}")
    -1.700
    """
    clip = _Clip(clip_low, clip_high, clip_dual)
    advantages = _per_token(advantages, log_probs, where)
    mask, log_probs, behavior, advantages = _clean(
        where, log_probs, behavior_log_probs=behavior_log_probs, advantages=advantages
    )
    surrogate = clip.surrogate(log_probs - behavior, advantages)
    return reduce_tokens(-surrogate, loss_aggregation=loss_aggregation, length=length, where=mask)


def ratio_diagnostics(
    log_probs: ArrayLike,
    behavior_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    where: ArrayLike | None = None,
) -> RatioDiagnostics:
    """How far the policy has moved from the behavior policy, for either clipped-ratio loss.

    Means over all kept samples (tokens) of

    * `clip_fraction`: 1 where the clip stops the gradient, on the side the sign of the advantage
      decides, so a large ratio with a negative advantage counts only beyond `clip_dual`;
    * `approximate_kl`: `rho - 1 - log rho`, unbiased for `KL(behavior || pi)` and never negative;
    * `mean_ratio`: `rho`, whose expectation is 1.

    The last two are infinite where a ratio is beyond the range of the dtype, never NaN.

    Under `jit` the work shared with the loss is done once. No gradient flows through the result.

    See "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html).

    Args:
      log_probs: `[..., N]` or `[..., N, T]`, under the policy.
      behavior_log_probs: of the shape of `log_probs`, under the policy that drew the samples.
      advantages: `[..., N]`.
      clip_low: as in the loss.
      clip_high: as in the loss.
      clip_dual: as in the loss.
      where: as in the loss.

    Returns:
      `RatioDiagnostics` of three scalars; all 0 where nothing is kept.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If a clip is outside its range, or shapes do not match.

    >>> log_probs = jnp.log(jnp.array([0.5, 0.25]))
    >>> behavior = jnp.log(jnp.array([0.25, 0.25]))
    >>> print(ratio_diagnostics(log_probs, behavior, jnp.array([1.0, -1.0])).clip_fraction)
    0.5
    """
    clip = _Clip(clip_low, clip_high, clip_dual)
    log_probs, advantages = _group(log_probs), as_floats(advantages, "expected advantages")
    if advantages.ndim != log_probs.ndim:
        advantages = _per_token(advantages, log_probs, where)
    mask, log_probs, behavior, advantages = _clean(
        where, log_probs, behavior_log_probs=behavior_log_probs, advantages=advantages
    )
    log_probs = jax.lax.stop_gradient(log_probs)
    log_ratio = log_probs - behavior
    return RatioDiagnostics(
        clip_fraction=masked_mean(clip.stopped(log_ratio, advantages), where=mask),
        approximate_kl=masked_mean(kl_penalty(behavior, log_probs, estimator="k3"), where=mask),
        mean_ratio=masked_mean(jnp.exp(log_ratio), where=mask),
    )


def kl_penalty(
    log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    *,
    estimator: KLEstimator,
    where: ArrayLike | None = None,
) -> Array:
    """Estimates of KL(pi || reference) from samples of pi, one for each sample or token.

    With `x ~ pi` and `d = log pi(x) - log reference(x)`,

    * `"k1"`: `d`
    * `"k2"`: `d^2 / 2`
    * `"k3"`: `exp(-d) - 1 + d`

    A good value is not a good gradient. Differentiated directly, with the samples held fixed, the
    gradients are `grad log pi` times 1, `d` and `1 - exp(-d)`. Using `E[grad log pi] = 0` and
    `E[exp(-d) grad log pi] = E_reference[grad log pi]`, their expectations are:

    | estimator | value                   | expected direct gradient          |
    |-----------|-------------------------|-----------------------------------|
    | `k1`      | unbiased                | 0: pure noise, never minimize it  |
    | `k2`      | biased, to third order  | `grad KL(pi || reference)`, exact |
    | `k3`      | unbiased, not negative  | `grad KL(reference || pi)`        |

    So log `k1` or `k3` and minimize `k2`; `k3`, which GRPO minimizes, pulls towards the *forward*
    KL and overflows where the reference finds a sample far more likely. All of this is for samples
    of `pi` itself.

    On tokens, the sum over a sequence of `k1` or `k3` values is unbiased for the KL of sequences.
    The sum of token `k2` gradients holds the prefixes fixed: it leaves out how a token changes the
    KL of the tokens after it. Give `sequence_log_probs` of both to get the whole gradient.

    See "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html).

    Args:
      log_probs: of each sample (token) under the policy, any shape.
      reference_log_probs: of the shape of `log_probs`.
      estimator: `"k1"`, `"k2"` or `"k3"`.
      where: boolean, broadcastable to `log_probs`; True = keep. None keeps everything.

    Returns:
      Estimates in nats, of the shape of `log_probs`, 0 where masked. Reduce samples with
      `masked_mean(values, where=where)` and tokens with `reduce_tokens(values, where=where)`, whose
      default is the mean over sequences of the sum over tokens, then scale and add to the loss.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If the estimator is unknown, or shapes do not match.

    >>> log_probs, reference = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.25]))
    >>> print(f"{masked_mean(kl_penalty(log_probs, reference, estimator='k3')):.4f}")
    0.0966
    """
    if estimator not in get_args(KLEstimator):
        raise ValueError(
            f"expected estimator to be one of {get_args(KLEstimator)}, got {estimator!r}"
        )
    _, log_probs, reference = _clean(where, log_probs, reference_log_probs=reference_log_probs)
    difference = log_probs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return jnp.square(difference) / 2
    # exp(-d) - 1 would lose all digits of a small d, where k3 is only d^2 / 2. The bound keeps the
    # difference of two huge numbers from being -inf, and k3 from being inf - inf.
    lowest = jnp.finfo(difference.dtype).min
    return jnp.expm1(-difference) + jnp.maximum(difference, lowest)


def entropy(logits: ArrayLike, *, where: ArrayLike | None = None) -> Array:
    """Entropy of categorical distributions.

    `H = -sum_a p_a log p_a` with `p = softmax(logits)` and `0 log 0 = 0`.

    An action whose logit is -inf is a masked action, as is one outside `where`: it has probability
    0 and gradient 0. With no action left, the entropy and its gradient are 0.

    See "Function Optimization Using Connectionist Reinforcement Learning Algorithms"
    (https://doi.org/10.1080/09540099108946587).

    Args:
      logits: `[..., A]`, not necessarily normalized.
      where: boolean, broadcastable to `[..., A]`; True = keep. None keeps everything. It masks
        actions; a mask of positions is `where[..., None]`.

    Returns:
      `[...]`, in nats, from 0 to `log A`. Reduce with `masked_mean` or `reduce_tokens`.

    Raises:
      TypeError: If `where` is not boolean.
      ValueError: If `where` does not broadcast to `logits`, or `logits` is a scalar.

    >>> print(f"{entropy(jnp.array([7.0, 7.0, -jnp.inf])):.4f}")
    0.6931
    """
    logits = as_floats(logits, "expected logits")
    if logits.ndim < 1:
        raise ValueError(f"expected logits [..., A], got shape {logits.shape}")

    # `!= -inf` rather than `isfinite`: a NaN must stay visible.
    mask = _mask(where, logits.shape) & (logits != -jnp.inf)
    # Any shift leaves the distribution, and so the gradient, alone.
    fixed = jax.lax.stop_gradient(logits)
    highest = jnp.max(fixed, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
    # Masked logits, and the -inf highest of a row without actions, never enter the subtraction.
    shifted = jnp.where(mask, logits, 0) - jnp.where(mask, highest, 0)
    # Two finite logits may be further apart than any float; 0 * -inf would be NaN.
    shifted = jnp.maximum(shifted, jnp.finfo(shifted.dtype).min)
    weights = jnp.where(mask, jnp.exp(shifted), 0)
    total = jnp.sum(weights, axis=-1)
    total = jnp.where(jnp.any(mask, axis=-1), total, 1)
    # Both terms are >= 0, since shifted <= 0: nothing cancels.
    return jnp.log(total) - jnp.sum(weights * shifted, axis=-1) / total


@dataclasses.dataclass(frozen=True)
class _Clip:
    """Where the clipped-ratio losses stop the gradient."""

    low: float
    high: float
    dual: float | None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ValueError(f"expected 0 <= clip_low <= 1, got {self.low!r}")
        if not self.high >= 0:
            raise ValueError(f"expected clip_high >= 0, got {self.high!r}")
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"expected clip_dual > 1 or None, got {self.dual!r}")

    def stopped(self, log_ratio: Array, advantages: Array) -> Array:
        """True where the loss takes a constant branch.

        Strict: on a bound the gradient flows, so that even a clip of 0 starts from ratio 1.
        """
        too_high = (advantages > 0) & (log_ratio > jnp.log1p(self.high))
        too_low = (advantages < 0) & (log_ratio < jnp.log1p(-self.low))
        return too_high | too_low | self._far_above(log_ratio, advantages)

    def surrogate(self, log_ratio: Array, advantages: Array) -> Array:
        """The ratio times the advantage, or the bound times it."""
        stopped = self.stopped(log_ratio, advantages)
        bound = jnp.where(advantages > 0, 1 + self.high, 1 - self.low)
        if self.dual is not None:
            bound = jnp.where(self._far_above(log_ratio, advantages), self.dual, bound)
        # The inner `where` keeps an overflowing ratio out of exp wherever it does not count: the
        # gradient would be 0 * inf, and so would the value at an advantage of 0.
        counts = ~stopped & (advantages != 0)
        ratio = jnp.where(stopped, bound, jnp.exp(jnp.where(counts, log_ratio, 0)))
        return ratio.astype(advantages.dtype) * advantages

    def _far_above(self, log_ratio: Array, advantages: Array) -> Array:
        dual = math.inf if self.dual is None else self.dual
        return (advantages < 0) & (log_ratio > jnp.log(dual))


def _clean(where: ArrayLike | None, log_probs: ArrayLike, **constants: ArrayLike) -> list[Array]:
    """The mask, then all arrays as floats, 0 where masked, without gradient into the constants.

    Inputs are cleaned, rather than the result: with a NaN in an input, the gradient of a masked
    result is 0 * NaN.
    """
    log_probs = as_floats(log_probs, "expected log_probs")
    mask = _mask(where, log_probs.shape)
    cleaned = [jnp.where(mask, log_probs, 0)]
    for name, values in constants.items():
        constant = as_floats(values, f"expected {name}")
        if constant.shape != log_probs.shape:
            raise ValueError(
                f"expected {name} of the shape of log_probs {log_probs.shape}, got {constant.shape}"
            )
        cleaned.append(jax.lax.stop_gradient(jnp.where(mask, constant, 0)))
    return [mask, *same_width(cleaned)]


def _per_token(advantages: ArrayLike, log_probs: ArrayLike, where: ArrayLike | None) -> Array:
    """Advantages `[..., N]` repeated for the tokens of log_probs `[..., N, T]`."""
    advantages = as_floats(advantages, "expected advantages")
    log_probs = as_floats(log_probs, "expected log_probs")
    _check_tokens("log_probs", log_probs, where)
    if advantages.shape != log_probs.shape[:-1]:
        raise ValueError(
            f"expected advantages [..., N] of shape {log_probs.shape[:-1]} for log_probs "
            f"[..., N, T] of shape {log_probs.shape}, got {advantages.shape}"
        )
    return jnp.broadcast_to(advantages[..., None], log_probs.shape)


def _group(log_probs: ArrayLike) -> Array:
    log_probs = as_floats(log_probs, "expected log_probs")
    if log_probs.ndim < 1:
        raise ValueError("expected log_probs [..., N], got a scalar")
    return log_probs


def _check_tokens(name: str, array: Array, where: ArrayLike | None) -> None:
    if array.ndim < 2:
        raise ValueError(f"expected {name} [..., N, T], got shape {array.shape}")
    # A mask of samples [N] would broadcast silently, along tokens, where N == T.
    if where is not None and np.ndim(where) != array.ndim:
        raise ValueError(
            f"expected where of the rank of {name} {array.shape}, got shape {np.shape(where)}; "
            "a mask of samples is where[..., None]"
        )


def _count(mask: Array, dtype: jnp.dtype, axis: int | None = None) -> Array:
    """Number of kept entries, and 1 instead of 0, to divide by."""
    return jnp.maximum(jnp.sum(mask, axis=axis, dtype=jnp.int32), 1).astype(dtype)


def _mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    if where is None:
        return jnp.ones(shape, bool)
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise TypeError(f"expected a boolean where, got dtype {where.dtype}")
    broadcasts = where.ndim <= len(shape) and all(
        size in (1, full) for size, full in zip(where.shape[::-1], shape[::-1], strict=False)
    )
    if not broadcasts:
        raise ValueError(f"expected where broadcastable to {shape}, got shape {where.shape}")
    return jnp.broadcast_to(where, shape)
