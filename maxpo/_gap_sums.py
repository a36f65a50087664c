"""The kernel under every estimator and value: weighted sums of the gaps between sorted rewards.

Sort one group ascending, r_(0) <= .. <= r_(N-1), and let d_m = r_(m+1) - r_(m) >= 0 be gap m, for
m = 0..N-2. Every quantity of this library that ranks rewards is, for the sample of rank i,

    x_i = base r_(0)  +  sum_{m < i} d_m above_m  +  sum_{m >= i} d_m below_m ,

so a quantity *is* its two vectors of N - 1 weights: what a gap contributes to the samples above it
and to those below it. `gap_sums` evaluates any of them in O(N log N) by one sort, two cumulative
sums and a look-up. What follows from the form:

* No cancellation. Rewards enter through their differences alone, and where all weights of a sum
  have one sign, rounding errors stay relative to the result. With base = 0 a shift of all rewards
  that is exact in floating point changes no bit.
* A gap is zero between ties, and ties look the same entry up: tied samples get equal bits.
* Centered results (`centered_weights`) sum to zero gap by gap, for any weights at all.

`docs/theory.md` derives this form and the weights.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maxpo._groups import Groups, Scalar, finish
from maxpo._subsets import Array

Weights: TypeAlias = Callable[[Array, Scalar], tuple[Array, Array]]
"""Maps gap numbers m = 0..N-2 and the number n of valid samples to (above, below) weights.

Plain arithmetic on m and n runs in float64 on the host where all is known while tracing, and else
in the graph, in the dtype of the rewards; a mask makes n an array `[..., 1]`.
"""

# Up to this group size comparing all pairs finds a rank faster than bisection does. Beyond it XLA's
# CPU backend no longer fuses the comparisons with their sum, and would write an [N, N] array.
_COMPARE_ALL_UP_TO = 32


def gap_sums(groups: Groups, weights: Weights, *, needed: Scalar, base: Scalar = 0) -> jax.Array:
    """Evaluates one quantity of the module's form for every sample, in O(N log N).

    Args:
      groups: The rewards.
      weights: What each gap gives to the samples above and below it.
      needed: Number of valid samples that the formula needs; groups with fewer get 0.
      base: Factor of the lowest reward of the group.

    Returns:
      `[..., N]`, in the dtype of the rewards.
    """
    dtype = groups.rewards.dtype
    above, below = weights(gap_numbers(groups, needed), groups.valid)
    above, below, factor = (jnp.asarray(x, dtype) for x in (above, below, base))
    return _gap_sums(groups, above, below, needed, factor)


def centered_weights(upper: Array, m: Array, n: Scalar) -> tuple[Array, Array]:
    """Weights that are `upper` above each gap and sum to zero over the group.

    N - 1 - m samples lie above gap m and m + 1 below it, so each gap cancels on its own when the
    lower ones pay -upper (N - 1 - m) / (m + 1).
    """
    if isinstance(upper, jax.Array):
        m = jnp.asarray(m, upper.dtype)
    return upper, -upper * (n - 1 - m) / (m + 1)


def gap_numbers(groups: Groups, k: Scalar) -> Array:
    """The numbers m = 0..N-2 of the gaps, on the last axis and of the rank of the rewards.

    They are float64 on the host if k and the number of valid samples are known while tracing, else
    an array in the dtype of the rewards.
    """
    traced = isinstance(k, jax.Array) or isinstance(groups.valid, jax.Array)
    shape = (1,) * (groups.rewards.ndim - 1) + (groups.size - 1,)
    if traced:
        return jnp.arange(groups.size - 1, dtype=groups.rewards.dtype).reshape(shape)
    return np.arange(groups.size - 1, dtype=np.float64).reshape(shape)


@jax.jit
def _gap_sums(
    groups: Groups, above: jax.Array, below: jax.Array, needed: Scalar, base: jax.Array
) -> jax.Array:
    keys, ranked = _rank(groups)
    gaps, lowest = _gaps(groups, ranked)
    # Weights after the last valid gap have no meaning and may be infinite, so `where` and not a
    # product with the zero gap.
    inside = _inside(groups)
    rises = jnp.cumsum(jnp.where(inside, gaps * above, 0), axis=-1)
    falls = lax.cumsum(jnp.where(inside, gaps * below, 0), axis=gaps.ndim - 1, reverse=True)
    edge = [(0, 0)] * (gaps.ndim - 1)
    by_rank = jnp.pad(rises, [*edge, (1, 0)]) + jnp.pad(falls, [*edge, (0, 1)]) + base * lowest
    result = jnp.take_along_axis(by_rank, _look_up(ranked, keys), axis=-1, mode="clip")
    return finish(groups, result, needed)


@jax.jit
def value_of_rises(groups: Groups, rises: jax.Array, needed: Scalar) -> jax.Array:
    """r_(0) + sum_m d_m rises_m, of shape [..., 1]."""
    _, ranked = _rank(groups)
    gaps, lowest = _gaps(groups, ranked)
    terms = jnp.where(_inside(groups), gaps * jnp.asarray(rises, gaps.dtype), 0)
    return finish(groups, lowest + jnp.sum(terms, axis=-1, keepdims=True), needed)


def _rank(groups: Groups) -> tuple[jax.Array, jax.Array]:
    """`rank_keys`, and the same sorted. The permutation is not needed: samples find their place."""
    keys = rank_keys(groups)
    return keys, lax.sort(keys, dimension=keys.ndim - 1, is_stable=False)


def rank_keys(groups: Groups) -> jax.Array:
    """Integer keys in the order of the rewards; masked samples come last.

    XLA's CPU backend sorts one operand of integers several times faster than floats with the
    permutation beside them (experiments/estimator_speed.py), and a radix sort is possible
    elsewhere.
    """
    rewards = groups.rewards
    bits = jnp.int64 if rewards.dtype == jnp.float64 else jnp.int32
    rewards = jnp.where(rewards == 0, 0, rewards)  # -0.0 ties with 0.0, but has other bits.
    keys = _flip_negative(lax.bitcast_convert_type(rewards, bits))
    if groups.where is not None:
        keys = jnp.where(groups.where, keys, jnp.iinfo(bits).max)
    return keys


def _flip_negative(bits: jax.Array) -> jax.Array:
    """Floats' bits as integers in the same order, and back: among negatives the order reverses."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _gaps(groups: Groups, ranked: jax.Array) -> tuple[jax.Array, jax.Array]:
    ascending = lax.bitcast_convert_type(_flip_negative(ranked), groups.rewards.dtype)
    return jnp.diff(ascending, axis=-1), ascending[..., :1]


def _inside(groups: Groups) -> Array:
    """True at gaps between two valid samples."""
    return gap_numbers(groups, groups.valid) < groups.valid - 1


def _look_up(ranked: jax.Array, keys: jax.Array) -> jax.Array:
    """Rank of each key, the lowest among ties."""
    if keys.shape[-1] <= _COMPARE_ALL_UP_TO:
        return jnp.sum(ranked[..., None, :] < keys[..., :, None], axis=-1, dtype=jnp.int32)
    return jnp.vectorize(jnp.searchsorted, signature="(n),(m)->(m)")(ranked, keys)
