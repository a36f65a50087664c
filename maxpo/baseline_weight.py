"""How much of the Leave-Two-Out baseline to subtract, from the gradients of past updates.

Let D be a batch's gradient under `pkpo_loo_minus_one` and H that under `leave_two_out_baseline`,
whose expectation is zero. Then D - w H, the gradient under `estimators.blended` of weight w, has
the same expectation for every w that the batch does not decide, and the covariance trace

    V(w) = V(0) - 2 w E[D.H] + w^2 E|H|^2 ,      least at  w* = E[D.H] / E|H|^2 .

D.H and |H|^2 of an update are unbiased for the two moments whatever weight that update used.
Averages of them over past updates give a weight that is independent of the current samples::

    weights = baseline_weight.init_weight()
    for each update:
        w = baseline_weight.weight_of(weights, decay=0.95)      # before this batch enters
        advantages = estimators.blended(rewards, k, w)
        ...                                                     # the step, on D - w H
        weights = baseline_weight.update_weight(weights, D, H, decay=0.95)

What can be said, and what cannot:

* The gradient is unbiased, exactly, provided that the weight is read before the batch's own moments
  enter. A weight that has seen the batch is biased.
* It is a second gradient: D and H cost two backward passes (any step is D - w H of the two). The
  rewards alone do not know w*, because it depends on how often samples share an action.
* That the variance tends to the least of all weights in [0, 1], which is at most the smaller one of
  V(0) and V(1), is a statement about a policy that stands still: while the policy moves, w* moves
  with it. `experiments/baseline_weight.py` measures how near it comes with a decay of 0.95 and 64
  prompts in an update; with less of either it comes less near.
* The averages need groups that teach something. Where those are so rare that the averages hold a
  few at most, the weight stays at its initial value or follows noise, and may be far off.
* The first two updates follow the initial weight and what is nearer to one noisy ratio.
* It is for the score-function loss: a clipped ratio is not linear in the advantages once the
  samples are off-policy, and the two gradients no longer add up.
* Prompts that share parameters are weighed together: w* is that of the batch, not of each prompt.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maxpo._numbers import as_floats, same_width

__all__ = ["WeightState", "add_products", "init_weight", "update_weight", "weight_of"]


class WeightState(NamedTuple):
    """Exponential moving averages over updates, not yet corrected for their start at 0.

    Attributes:
      moments: `[5]`, of D.H, |H|^2, (D.H)^2, D.H |H|^2 and |H|^4.
      updates: Number of updates that entered.
    """

    moments: jax.Array
    updates: jax.Array


def init_weight() -> WeightState:
    """The state before the first update."""
    return WeightState(jnp.zeros(5), jnp.zeros((), jnp.int32))


def update_weight(
    state: WeightState, improvement_grad: Any, baseline_grad: Any, *, decay: float
) -> WeightState:
    """Takes the gradients of one update in; call it after that update has read its weight.

    Args:
      state: From `init_weight` or the update before.
      improvement_grad: D, a pytree of arrays: the gradient of the batch's mean score-function loss
        with the advantages of `pkpo_loo_minus_one`. Its scale does not matter as long as it is the
        same in all updates; in float32 norms of 1e-9..1e9 are.
      baseline_grad: H, the same with those of `leave_two_out_baseline`.
      decay: Decay of the averages, in [0, 1); 0.95 forgets in twenty updates. Use at least that,
        with at least 64 prompts in an update, where the variance must not be above the better end.

    Returns:
      The next state.

    Raises:
      ValueError: If decay is not in [0, 1), or the two gradients have not the same structure.
    """
    cross, square = _inner(improvement_grad, baseline_grad), _inner(baseline_grad, baseline_grad)
    return add_products(state, cross, square, decay=decay)


def add_products(
    state: WeightState, cross: ArrayLike, square: ArrayLike, *, decay: float
) -> WeightState:
    """`update_weight` where the inner products are known.

    Args:
      state: From `init_weight` or the update before.
      cross: D.H, a scalar.
      square: |H|^2, a scalar.
      decay: Decay of the averages, in [0, 1).

    Returns:
      The next state.

    Raises:
      ValueError: If decay is not in [0, 1).
    """
    _check_decay(decay)
    d, h = (
        as_floats(x, "expected inner products").astype(state.moments.dtype) for x in (cross, square)
    )
    new = jnp.stack([d, h, d * d, d * h, h * h])
    return WeightState(decay * state.moments + (1 - decay) * new, state.updates + 1)


def weight_of(
    state: WeightState, *, decay: float, initial: float = 1.0, caution: float = 2.0
) -> jax.Array:
    """The weight for the next update: w* as far as the past shows that it beats 0 and 1.

    From the better one of the two ends towards the estimate w^ of w*, by positive-part shrinkage:

        w = end + (w^ - end) max(0, 1 - (caution s / (w^ - end))^2) ,   clipped to [0, 1]
        w^ = mean(D.H) / mean(|H|^2) ,   end = 1 if w^ > 1/2, else 0
        s^2 = mean((D.H - w^ |H|^2)^2) / ((n - 1) mean(|H|^2)^2)
        n = (1 + decay) (1 - decay^t) / ((1 - decay) (1 + decay^t))

    The means are moving averages over t updates, worth n independent ones, and s is the standard
    error of the ratio. V(1) < V(0) iff w* > 1/2, hence the end.

    Args:
      state: From `update_weight`; only of updates before the one that the weight is for.
      decay: The one that the state was made with.
      initial: The weight as long as no baseline gradient other than 0 has entered.
      caution: How many standard errors w^ has to be away from an end; 0 is w^ itself, clipped.

    Returns:
      A scalar in [0, 1], or `initial`. After a single update it is an end, unless `caution` is 0.

    Raises:
      ValueError: If decay is not in [0, 1) or caution is negative.

    >>> weight_of(init_weight(), decay=0.95)
    Array(1., dtype=float32)
    """
    _check_decay(decay)
    if not caution >= 0:
        raise ValueError(f"caution: expected at least 0, got {caution!r}")
    updates = state.updates.astype(state.moments.dtype)
    power = jnp.asarray(decay, updates.dtype) ** updates
    d, h, dd, dh, hh = state.moments / jnp.where(state.updates == 0, 1, 1 - power)
    felt = h > 0
    h = jnp.where(felt, h, 1)
    best = d / h
    worth = (1 + decay) * (1 - power) / ((1 - decay) * (1 + power))
    residual = jnp.maximum(dd - 2 * best * dh + best**2 * hh, 0)
    # One update has no spread; its n - 1 = 0 is never used, but must not make a NaN.
    variance = residual / jnp.where(state.updates < 2, 1, worth - 1) / h**2
    end = jnp.where(best > 0.5, 1.0, 0.0)
    away = best - end
    kept = jnp.maximum(1 - caution**2 * variance / jnp.where(away == 0, 1, away) ** 2, 0)
    kept = jnp.where(state.updates < 2, 0.0 if caution else 1.0, kept)
    return jnp.where(felt, jnp.clip(end + away * kept, 0, 1), initial)


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay!r}")


def _inner(x: Any, y: Any) -> jax.Array:
    """Inner product of two pytrees, summed in float32 or wider."""

    def product(a: ArrayLike, b: ArrayLike) -> jax.Array:
        a, b = same_width([as_floats(x, "expected gradients") for x in (a, b)])
        return jnp.sum(a * b)

    nothing = jnp.zeros((), jnp.float32)
    first, *others = same_width([nothing, *jax.tree.leaves(jax.tree.map(product, x, y))])
    return sum(others, first)
