"""The advantages on the host: NumPy in, NumPy out, for trainers that do not run on JAX.

Nothing is compiled and no JAX device is touched: `maxpo.estimators` would start every backend that
JAX finds, and on a GPU take most of its memory from the trainer. Any group size costs the same from
its first call on, which suits groups of changing size.

`max_at_k`, `rank_warp` and `maxpo` are the functions of the same name of `maxpo` and
`maxpo.estimators`, with their rules for masks, ties, NaN and k, and differ from them by rounding.
They are computed in float64 from the same weights. All groups have one k.

Groups of unequal size: give the rewards of all groups as one vector, and with `groups` the label of
each sample's group, whatever the order. A group with too few samples for k then gets 0, where
without labels a k that no group could use is an error.

>>> maxpo([1., 2., 7., 4., 9.], k=2, groups=["a", "a", "b", "a", "b"])
array([-2., -2.,  0.,  4.,  0.])
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxpo._groups import Groups, as_k
from maxpo._numbers import host_floats, is_scalar
from maxpo._subsets import all_below

__all__ = ["Array", "Place", "Weights", "max_at_k", "maxpo", "rank_warp"]

Array = NDArray[Any]


def maxpo(
    rewards: ArrayLike,
    k: float,
    *,
    where: ArrayLike | None = None,
    groups: Iterable[Hashable] | None = None,
) -> Array:
    """MaxPO's advantages; see `maxpo.estimators.maxpo`.

    Args:
      rewards: `[..., N]`, or `[B]` with `groups`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; need not be an integer.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.
      groups: `[B]`, the label of each sample's group: any hashable value but None and NaN.

    Returns:
      Advantages in the shape of the rewards, for a loss that is a mean over the group; float64 for
      float64 rewards, else float32. Groups with fewer than k + 1 valid samples get 0.

    Raises:
      ValueError: If k is not in 1..N-1, or with `groups` k < 1, or the labels do not fit.

    >>> maxpo([1., 2., 4.], k=2)
    array([-2., -2.,  4.])
    """
    return _for_each_sample("maxpo", _maxpo_weights, rewards, k, where, groups)


def rank_warp(
    rewards: ArrayLike,
    k: float,
    *,
    where: ArrayLike | None = None,
    groups: Iterable[Hashable] | None = None,
) -> Array:
    """Rewards whose group-centered mean-policy gradient is that of max@k; see `maxpo.rank_warp`.

    Args:
      rewards: `[..., N]`, or `[B]` with `groups`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; need not be an integer.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.
      groups: `[B]`, the label of each sample's group: any hashable value but None and NaN.

    Returns:
      The shape and unit of the rewards; float64 for float64 rewards, else float32. The lowest
      sample gets 0, as do groups with fewer than k + 1 valid samples.

    Raises:
      ValueError: If k is not in 1..N-1, or with `groups` k < 1, or the labels do not fit.

    >>> rank_warp([5., 6., 7.], k=2)
    array([0., 0., 1.])
    """
    return _for_each_sample("rank_warp", _warp_weights, rewards, k, where, groups)


def max_at_k(
    rewards: ArrayLike,
    k: float,
    *,
    where: ArrayLike | None = None,
    groups: Iterable[Hashable] | None = None,
) -> Array:
    """Unbiased estimate of the expected best of k samples; see `maxpo.max_at_k`.

    Args:
      rewards: `[..., N]`, or `[B]` with `groups`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N; need not be an integer.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.
      groups: `[B]`, the label of each sample's group: any hashable value but None and NaN.

    Returns:
      `[...]`, or one value for each label in the order of their first samples; in the unit of the
      rewards. 0 where fewer than k valid samples are in a group.

    Raises:
      ValueError: If k is not in 1..N, or with `groups` k < 1, or the labels do not fit.

    >>> print(max_at_k([1., 2., 4.], k=2))
    3.3333333333333335
    """
    padded, place = _as_groups("max_at_k", rewards, where, groups)
    k = _as_k("max_at_k", k, padded, left_out=0 if place is None else None)
    # Every sample of a group would get the same sum: below all gaps and above them alike.
    rises, _ = _tables(_value_weights, padded, k)
    sums = _gap_sums(padded, rises, rises, needed=k, base=1)
    if padded.where is None:
        return sums[..., 0]
    # Masked samples hold 0 instead; any valid one will do.
    return np.take_along_axis(sums, np.asarray(padded.where).argmax(-1)[..., None], -1)[..., 0]


Place = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The row and the column of each sample of a flat batch among padded groups."""


def _for_each_sample(
    name: str,
    weights: "Weights",
    rewards: ArrayLike,
    k: float,
    where: ArrayLike | None,
    labels: Iterable[Hashable] | None,
) -> Array:
    groups, place = _as_groups(name, rewards, where, labels)
    k = _as_k(name, k, groups, left_out=1 if place is None else None)
    rises, falls = _tables(weights, groups, k)
    result = _gap_sums(groups, rises, falls, needed=k + 1)
    return result if place is None else result[place]


def _as_groups(
    name: str,
    rewards: ArrayLike,
    where: ArrayLike | None,
    labels: Iterable[Hashable] | None,
) -> tuple[Groups, Place | None]:
    """The checks of `maxpo._groups.as_groups`, without its arrays on a device."""
    array = host_floats(rewards, f"{name}: expected rewards")
    if labels is not None and array.ndim != 1:
        raise ValueError(
            f"{name}: expected rewards of shape [B] beside the labels of their groups, got shape "
            f"{list(array.shape)}"
        )
    if array.ndim == 0 or (labels is None and array.shape[-1] == 0):
        raise ValueError(
            f"{name}: expected rewards of shape [..., N] with N >= 1 samples on the last axis, "
            f"got shape {list(array.shape)}"
        )
    mask = None if where is None else _as_mask(name, where, array.shape)
    place = None
    if labels is not None:
        place = _places(name, labels, len(array))
        array, mask = _pad(array, mask, place)
    if mask is None:
        return Groups(array, None, array.shape[-1]), place  # type: ignore[arg-type]
    return Groups(array, mask, mask.sum(axis=-1, keepdims=True)), place  # type: ignore[arg-type]


def _as_mask(name: str, where: ArrayLike, shape: tuple[int, ...]) -> Array:
    mask = np.asarray(where)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name}: expected a boolean mask `where`, got dtype {mask.dtype}")
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a mask `where` that broadcasts to the shape {list(shape)} "
            f"of the rewards, got shape {list(mask.shape)}"
        ) from None


def _places(name: str, labels: Iterable[Hashable], batch: int) -> Place:
    """Groups in the order of their first samples, and within them the order of the batch."""
    # Elements of arrays as Python's own: those of torch and JAX differ in hash from their equals.
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(labels) != batch:
        raise ValueError(f"{name}: expected labels `groups` for {batch} samples, got {len(labels)}")
    row_of: dict[Hashable, int] = {}
    sizes: list[int] = []
    place = np.empty((2, batch), np.intp)
    for sample, label in enumerate(labels):
        # Samples without a group would be one large group, or each its own; both are wrong.
        if label is None or label != label:
            raise ValueError(
                f"{name}: expected a label in `groups` for each sample, got {label} for sample "
                f"{sample}"
            )
        row = row_of.setdefault(label, len(sizes))
        if row == len(sizes):
            sizes.append(0)
        place[:, sample] = row, sizes[row]
        sizes[row] += 1
    return place[0], place[1]


def _pad(array: Array, mask: Array | None, place: Place) -> tuple[Array, Array]:
    """The flat batch as one row for each group, and a mask that is True at its valid samples."""
    rows, columns = place
    shape = rows.max(initial=-1) + 1, columns.max(initial=0) + 1
    padded, valid = np.zeros(shape, array.dtype), np.zeros(shape, bool)
    padded[place] = array
    valid[place] = True if mask is None else mask
    return padded, valid


def _as_k(name: str, k: float, groups: Groups, *, left_out: int | None) -> float:
    if not is_scalar(k):
        raise TypeError(
            f"{name}: expected one k for all groups, got the shape {list(np.shape(k))}; the "
            "function of this name for JAX takes one for each group"
        )
    # An array of JAX stays one in `as_k`, and would take the rest to its device.
    if isinstance(k, (np.generic, np.ndarray, jax.Array)) and k.ndim == 0:
        k = k.item()
    return as_k(name, k, groups, left_out=left_out)  # type: ignore[return-value]


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
    """Weights `[N - 1]`, or `[..., N - 1]` with a mask, zero after the last valid gap."""
    if groups.where is None:
        return _table(weights, groups.size, groups.size, k)
    sizes, group_of = np.unique(np.asarray(groups.valid), return_inverse=True)
    tables = [_table(weights, int(n), groups.size, k) for n in sizes]
    both: Array = np.array(tables).reshape(len(sizes), 2, groups.size - 1)  # Also for no groups.
    rows = group_of.reshape(groups.rewards.shape[:-1])
    return both[rows, 0], both[rows, 1]


@functools.lru_cache(maxsize=1024)
def _table(weights: Weights, n: int, size: int, k: float) -> tuple[Array, Array]:
    above, below = np.zeros(size - 1), np.zeros(size - 1)
    if n > 1:
        above[: n - 1], below[: n - 1] = weights(n, k)
    for table in (above, below):
        table.flags.writeable = False
    return above, below


@np.errstate(over="ignore", invalid="ignore")  # Infinite and NaN, as on a device.
def _gap_sums(
    groups: Groups, above: Array, below: Array, *, needed: float, base: float = 0
) -> Array:
    """`maxpo._gap_sums.gap_sums` on the host."""
    rewards, where = np.asarray(groups.rewards), groups.where
    values = rewards.astype(np.float64)
    sound = np.isfinite(values)
    if where is not None:
        sound |= ~where
    spoilt = None if sound.all() else ~sound.all(axis=-1, keepdims=True)
    if spoilt is not None:
        values = np.where(spoilt, 0, values)
    if where is not None:
        # As high as the highest valid sample: no gap, and no weight after it.
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
