"""The advantages on the host: NumPy in, NumPy out, for trainers that do not run on JAX.

Nothing is compiled and no JAX device is touched: `maxpo.estimators` would start every backend that
JAX finds, and on a GPU take most of its memory from the trainer. Any group size costs the same from
its first call on, which suits groups of changing size.

`max_at_k`, `rank_warp` and `maxpo` are the functions of the same name of `maxpo` and
`maxpo.estimators`, with their rules for masks, ties, NaN and k, and differ from them by rounding.
They are computed in float64 from the same weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxpo._groups import Groups, as_k
from maxpo._numbers import host_floats
from maxpo._subsets import all_below

Array = NDArray[Any]


def maxpo(rewards: ArrayLike, k: float, *, where: ArrayLike | None = None) -> Array:
    """MaxPO's advantages; see `maxpo.estimators.maxpo`.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; need not be an integer.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages for a loss that is a mean over the group; float64 for float64 rewards,
      else float32. Groups with fewer than k + 1 valid samples get 0.

    Raises:
      ValueError: If k is not in 1..N-1.

    >>> maxpo([1., 2., 4.], k=2)
    array([-2., -2.,  4.])
    """
    groups = _as_groups("maxpo", rewards, where)
    k = _as_k("maxpo", k, groups, left_out=1)
    rises, falls = _tables(_maxpo_weights, groups, k)
    return _gap_sums(groups, rises, falls, needed=k + 1)


def rank_warp(rewards: ArrayLike, k: float, *, where: ArrayLike | None = None) -> Array:
    """Rewards whose group-centered mean-policy gradient is that of max@k; see `maxpo.rank_warp`.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; need not be an integer.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]`, in the unit of the rewards; float64 for float64 rewards, else float32. The lowest
      sample gets 0, as do groups with fewer than k + 1 valid samples.

    Raises:
      ValueError: If k is not in 1..N-1.

    >>> rank_warp([5., 6., 7.], k=2)
    array([0., 0., 1.])
    """
    groups = _as_groups("rank_warp", rewards, where)
    k = _as_k("rank_warp", k, groups, left_out=1)
    rises, falls = _tables(_warp_weights, groups, k)
    return _gap_sums(groups, rises, falls, needed=k + 1)


def max_at_k(rewards: ArrayLike, k: float, *, where: ArrayLike | None = None) -> Array:
    """Unbiased estimate of the expected best of k samples; see `maxpo.max_at_k`.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N; need not be an integer.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[...]`, in the unit of the rewards. 0 where a mask leaves fewer than k samples.

    Raises:
      ValueError: If k is not in 1..N.

    >>> print(max_at_k([1., 2., 4.], k=2))
    3.3333333333333335
    """
    groups = _as_groups("max_at_k", rewards, where)
    k = _as_k("max_at_k", k, groups, left_out=0)
    # Every sample of a group would get the same sum: below all gaps and above them alike.
    rises, _ = _tables(_value_weights, groups, k)
    sums = _gap_sums(groups, rises, rises, needed=k, base=1)
    if groups.where is None:
        return sums[..., 0]
    # Masked samples hold 0 instead; any valid one will do.
    return np.take_along_axis(sums, np.asarray(groups.where).argmax(-1)[..., None], -1)[..., 0]


def _as_groups(name: str, rewards: ArrayLike, where: ArrayLike | None) -> Groups:
    """The checks of `maxpo._groups.as_groups`, without its arrays on a device."""
    array = host_floats(rewards, f"{name}: expected rewards")
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(
            f"{name}: expected rewards of shape [..., N] with N >= 1 samples on the last axis, "
            f"got shape {list(array.shape)}."
        )
    if where is None:
        return Groups(array, None, array.shape[-1])  # type: ignore[arg-type]
    mask = np.asarray(where)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name}: expected a boolean mask `where`, got dtype {mask.dtype}.")
    try:
        mask = np.broadcast_to(mask, array.shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a mask `where` that broadcasts to the shape {list(array.shape)} "
            f"of the rewards, got shape {list(mask.shape)}."
        ) from None
    return Groups(array, mask, mask.sum(axis=-1, keepdims=True))  # type: ignore[arg-type]


def _as_k(name: str, k: float, groups: Groups, *, left_out: int) -> float:
    return as_k(name, k.item() if isinstance(k, np.generic) else k, groups, left_out=left_out)  # type: ignore[return-value]


Weights = Callable[[int, float], tuple[Array, Array]]
"""Maps the number n of valid samples and k to what each of the n - 1 gaps gives above and below."""


def _maxpo_weights(n: int, k: float) -> tuple[Array, Array]:
    m = np.arange(n - 1)
    above = k * _odds(m + 1, n - 1, k)
    return above, -above * (n - 1 - m) / (m + 1)


def _warp_weights(n: int, k: float) -> tuple[Array, Array]:
    m = np.arange(n - 1)
    return _odds(m + 1, n - 1, k) * (n - 1) / (m + 1), np.zeros(n - 1)


def _value_weights(n: int, k: float) -> tuple[Array, Array]:
    rises = 1 - _odds(np.arange(1, n), n, k)
    return rises, rises


def _odds(below: Array, total: int, k: float) -> Array:
    return np.asarray(all_below(below, total, k, total, np.dtype(np.float64)))


def _tables(weights: Weights, groups: Groups, k: float) -> tuple[Array, Array]:
    """Weights `[N - 1]`, or `[..., N - 1]` with a mask, zero behind the last valid gap."""
    if groups.where is None:
        return _table(weights, groups.size, groups.size, k)
    sizes, group_of = np.unique(np.asarray(groups.valid), return_inverse=True)
    tables = [_table(weights, int(n), groups.size, k) for n in sizes]
    rows = group_of.reshape(groups.rewards.shape[:-1])
    return np.stack([above for above, _ in tables])[rows], np.stack([b for _, b in tables])[rows]


@functools.lru_cache(maxsize=1024)
def _table(weights: Weights, n: int, size: int, k: float) -> tuple[Array, Array]:
    above, below = np.zeros(size - 1), np.zeros(size - 1)
    if n > 1:
        above[: n - 1], below[: n - 1] = weights(n, k)
    for table in (above, below):
        table.flags.writeable = False
    return above, below


def _gap_sums(
    groups: Groups, above: Array, below: Array, *, needed: float, base: float = 0
) -> Array:
    """`maxpo.order_statistics.gap_sums` on the host."""
    rewards, where = np.asarray(groups.rewards), groups.where
    values = rewards.astype(np.float64)
    sound = np.isfinite(values)
    if where is not None:
        sound |= ~where
    spoilt = None if sound.all() else ~sound.all(axis=-1, keepdims=True)
    if spoilt is not None:
        values = np.where(spoilt, 0, values)
    if where is not None:
        # As high as the highest valid sample: no gap, and no weight behind it.
        highest = np.where(where, values, -np.inf).max(axis=-1, keepdims=True)
        values = np.where(where, values, np.where(np.isfinite(highest), highest, 0))

    # Positions in the flat array, which NumPy gathers and scatters several times faster.
    size = values.shape[-1]
    starts = np.arange(0, values.size, size).reshape(*values.shape[:-1], 1)
    order = np.argsort(values, axis=-1, kind="stable") + starts
    ranked = values.ravel()[order]
    gaps = np.diff(ranked, axis=-1)
    by_rank = np.zeros_like(ranked)
    np.cumsum(gaps * above, axis=-1, out=by_rank[..., 1:])
    if below.any():
        by_rank[..., :-1] += np.cumsum((gaps * below)[..., ::-1], axis=-1)[..., ::-1]
    if base:
        by_rank += base * ranked[..., :1]
    result = np.empty(values.shape)
    result.ravel()[order] = by_rank

    if where is not None:
        result = np.where(np.asarray(groups.valid) < needed, 0, result)
    if spoilt is not None:
        result = np.where(spoilt, np.nan, result)
    if where is not None:
        result = np.where(where, result, 0)
    return result.astype(rewards.dtype)
