"""What every function of grouped rewards checks and converts before it computes."""

import math
import numbers
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maxpo._numbers import as_floats, host_floats, is_scalar, is_traced

Scalar: TypeAlias = int | float | jax.Array
"""A Python number where the value is known while tracing, an array where it is not."""


# By how much, relatively, a k may miss an integer that it stands for.
_ROUNDINGS = 4 * float(np.finfo(np.float32).eps)


class Groups(NamedTuple):
    """Grouped rewards in the form that the kernels take.

    Attributes:
      rewards: `[..., N]`, float32 or float64, detached from the gradient.
      where: `[..., N]` boolean, True at valid samples; None when all of them are valid.
      valid: Number of valid samples: the int N without a mask, else an array `[..., 1]`.
    """

    rewards: jax.Array
    where: jax.Array | None
    valid: Scalar

    @property
    def size(self) -> int:
        """N, the length of the group axis, masked samples included."""
        return self.rewards.shape[-1]


def as_groups(name: str, rewards: ArrayLike, where: ArrayLike | None) -> Groups:
    """Checks, casts and detaches the `rewards` and `where` of the public function `name`.

    Everything narrower than float64 becomes float32 *before* it is ranked: bfloat16 rewards that
    were compared in one precision and averaged in another would rank and weigh differently. So do
    integers of any width, each as the float nearest to it.

    Raises:
      TypeError: If the rewards are not real numbers, or the mask is not boolean.
      ValueError: If there is no group axis or it is empty, or the mask does not broadcast to it.
    """
    rewards = as_floats(rewards, f"{name}: expected rewards")
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise ValueError(
            f"{name}: expected rewards of shape [..., N] with N >= 1 samples on the last axis, "
            f"got shape {list(rewards.shape)}"
        )
    rewards = lax.stop_gradient(rewards)
    if where is None:
        return Groups(rewards, None, rewards.shape[-1])

    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected a boolean mask `where`, got dtype {where.dtype}")
    try:
        where = jnp.broadcast_to(where, rewards.shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a mask `where` that broadcasts to the shape {list(rewards.shape)} "
            f"of the rewards, got shape {list(where.shape)}"
        ) from None
    return Groups(rewards, where, jnp.sum(where, axis=-1, keepdims=True, dtype=rewards.dtype))


def as_group_k(name: str, k: ArrayLike, groups: Groups, *, left_out: int) -> Scalar:
    """`as_k` of one k for all groups, or an array `[..., 1]` of one for each of them.

    Known values are checked, but stay an array in the graph, by the rules for one.

    Args:
      name: The public function, for the message.
      k: A real scalar, or real numbers in a shape that broadcasts to `[...]`.
      groups: The rewards `[..., N]`.
      left_out: See `as_k`.

    Raises:
      TypeError: If `k` is not real.
      ValueError: If its shape does not broadcast to the groups, or some `k < 1` or
        `k > N - left_out`.
    """
    if is_scalar(k):
        return as_k(name, k, groups, left_out=left_out)  # type: ignore[arg-type]
    if bool in [getattr(leaf, "dtype", type(leaf)) for leaf in jax.tree.leaves(k)]:
        raise TypeError(f"{name}: expected k to be real numbers, got booleans")
    traced = is_traced(k)
    ks = (as_floats if traced else host_floats)(k, f"{name}: expected k")
    batch = groups.rewards.shape[:-1]
    try:
        spread = jnp.broadcast_to(ks[..., None], (*batch, 1))
    except ValueError:
        raise ValueError(
            f"{name}: expected one k, or one for each group in a shape that broadcasts to "
            f"{list(batch)}, got shape {list(ks.shape)}"
        ) from None
    if not traced:
        # Integers bound the range, so these are the k that `as_k` refuses after its rounding.
        known, most = np.asarray(ks, np.float64), groups.size - left_out
        wrong = ~((known >= 1 - _ROUNDINGS) & (known <= most * (1 + _ROUNDINGS)))
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0].tolist())
            got = f"k{list(first)} = {known[first]:g}"
            raise ValueError(_out_of_range(name, groups, left_out, got))
    return _in_graph(spread, groups)


def as_k(name: str, k: Scalar, groups: Groups, *, left_out: int | None) -> Scalar:
    """Checks `k` and returns it as a Python number or as a scalar array in the rewards' dtype.

    An array stays an array even where its value is known, so that a new value compiles nothing
    again. A traced `k` below 1 becomes NaN; `finish` deals with that, and with one too large. A k
    within a few roundings of an integer is that integer: schedules in float32 miss their own ends.

    Args:
      name: The public function, for the message.
      k: Number of samples whose best counts, at least 1; need not be an integer.
      groups: The rewards.
      left_out: Samples that must remain besides the k: 1 where the formula leaves one out, else 0.
        None if a k that is too large for every group is no mistake.

    Raises:
      TypeError: If `k` is not a real scalar.
      ValueError: If `k < 1` or `k > N - left_out`; it is never clamped.
    """
    if isinstance(k, (np.ndarray, jax.Array)):
        if k.ndim != 0 or not jnp.isrealobj(k) or k.dtype == jnp.bool_:
            raise TypeError(
                f"{name}: expected k to be a real scalar, got an array of shape {list(k.shape)} "
                f"and dtype {k.dtype}"
            )
    elif isinstance(k, bool) or not isinstance(k, numbers.Real):
        raise TypeError(f"{name}: expected k to be a real scalar, got {k!r}")

    if isinstance(k, jax.core.Tracer):
        return _in_graph(k, groups)

    value = float(k)
    if math.isfinite(value) and abs(value - round(value)) <= _ROUNDINGS * round(value):
        value = round(value)
    if left_out is None:
        if not 1 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite k >= 1, got k = {k}")
        return value
    most = groups.size - left_out
    if not 1 <= value <= most:  # Written so that NaN fails, too.
        raise ValueError(_out_of_range(name, groups, left_out, f"k = {k}"))
    return jnp.asarray(value, groups.rewards.dtype) if isinstance(k, jax.Array) else value


def _in_graph(k: ArrayLike, groups: Groups) -> jax.Array:
    """`k` in the rewards' dtype, NaN below 1, without gradient."""
    k = jnp.asarray(lax.stop_gradient(k), groups.rewards.dtype)
    nearest = jnp.round(k)
    k = jnp.where(jnp.abs(k - nearest) <= _ROUNDINGS * nearest, nearest, k)
    return jnp.where(k >= 1, k, jnp.nan)


def _out_of_range(name: str, groups: Groups, left_out: int, got: str) -> str:
    most = groups.size - left_out
    bound = f"N - {left_out} = {most} (the formula leaves {left_out} out)" if left_out else "N"
    return f"{name}: expected 1 <= k <= {bound} in groups of N = {groups.size} samples, got {got}"


def finish(groups: Groups, result: jax.Array, needed: Scalar) -> jax.Array:
    """Applies the rules that all results share.

    A group with fewer than `needed` valid samples gets 0, a NaN or infinity in a group makes the
    whole group NaN, as does a NaN k, and a masked sample gets 0 whatever its group holds.

    Args:
      groups: The rewards.
      result: One value for each sample `[..., N]`, or for each group `[..., 1]`.
      needed: Valid samples without which the formula has no meaning.
    """
    result = jnp.where(jnp.asarray(groups.valid < needed), 0, result)
    finite = jnp.isfinite(groups.rewards)
    if groups.where is not None:
        finite |= ~groups.where
    sound = jnp.all(finite, axis=-1, keepdims=True) & ~jnp.isnan(needed)
    result = jnp.where(sound, result, jnp.nan)
    if groups.where is not None and result.shape == groups.where.shape:
        result = jnp.where(groups.where, result, 0)
    return result
