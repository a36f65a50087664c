"""How long `maxpo` takes, against what it could be compared with, measured in one process.

References, all of them checked against `maxpo` in the tests:

* `sort_with_index`: one XLA sort that carries the permutation along, where most rank-based code
  would begin. Beating it means that ranking, not the estimator, was the cost.
* `sort_keys`: the sort that `maxpo` does instead, of the rewards' bits as integers, alone.
* `leave_two_out_quadratic`: the published definition of the Leave-Two-Out baseline, over all pairs.
* `pkpo_recurrence`: PKPO's published recurrence, in NumPy, one group at a time.

Times of different functions are taken in turns, so that a slow moment of the machine meets all of
them, and compared as medians.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import estimators, runs
from maxpo.plotting import WIDTH, tidy
from maxpo.studies.speed.turns import take_turns

__all__ = [
    "Timing",
    "check_config",
    "contenders",
    "leave_two_out_quadratic",
    "measure",
    "pkpo_recurrence",
    "scaling_figure",
    "sort_keys",
    "sort_with_index",
    "table",
]


def sort_with_index(rewards: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorted rewards and the permutation that sorts them."""
    index = lax.broadcasted_iota(jnp.int32, rewards.shape, rewards.ndim - 1)
    ranked, order = lax.sort((rewards, index), num_keys=1)
    return ranked, order


def sort_keys(rewards: jax.Array) -> jax.Array:
    """The bits of non-negative float32 rewards, sorted as integers: in the order of the rewards."""
    return lax.sort(lax.bitcast_convert_type(rewards, jnp.int32), is_stable=False)


def leave_two_out_quadratic(rewards: jax.Array, k: int) -> jax.Array:
    """MaxPO by its definition: for each pair (i, j), how much j improves on k - 1 of the rest.

    With the rewards sorted, the best of T is sample l in C(l', k-2) of the subsets, l' counting the
    samples below l that are not i. So every pair costs O(1) after two prefix sums; B_i is the mean
    over j of an [N, N] array.

    Args:
      rewards: `[..., N]`.
      k: 2 <= k <= N - 1.

    Returns:
      `[..., N]`, what `estimators.maxpo` returns, to the rounding of sums that cancel.
    """
    n = rewards.shape[-1]
    rank = np.arange(n)
    r, index = sort_with_index(rewards)

    def below(terms: jax.Array) -> jax.Array:
        """Sums over the lower samples."""
        return jnp.cumsum(terms, axis=-1) - terms

    # Sample j's own improvement on the other N - 1, as (w, w r): its value is r_j w - (w r).
    whole = jnp.asarray(_ratio(rank, n - 1, k))
    expected_improvement = r * below(whole) - below(whole * r)

    # Without sample i: those above it have one sample fewer under them, ...
    shifted = jnp.asarray(_ratio(np.maximum(rank - 1, 0), n - 2, k) * (rank > 0))
    kept = jnp.asarray(_ratio(rank, n - 2, k))
    i, j = (..., slice(None), None), (..., None, slice(None))

    def of_pair(terms: jax.Array) -> jax.Array:
        """Sums below j: unshifted weights up to i, shifted ones between i and j."""
        low, high = below(kept * terms), below(shifted * terms)
        return low[i] + high[j] - (high + shifted * terms)[i]

    upper = r[j] * of_pair(jnp.ones_like(r)) - of_pair(r)
    # ... and those below it do not notice.
    lower = (r * below(kept) - below(kept * r))[j]
    pairs = jnp.where(rank[:, None] > rank, lower, upper)
    pairs = jnp.where(rank[:, None] == rank, 0, pairs)
    advantages = k * (expected_improvement - jnp.sum(pairs, axis=-1) / (n - 1))
    return jnp.put_along_axis(jnp.zeros_like(r), index, advantages, axis=-1, inplace=False)


def _ratio(below: np.ndarray, total: int, k: int) -> np.ndarray:
    """C(below, k - 2) / C(total, k - 1): the best of k - 1 has `below` others under it."""
    exact = [math.comb(int(b), k - 2) / math.comb(total, k - 1) for b in below]
    return np.array(exact, np.float32)


def pkpo_recurrence(rewards: np.ndarray, k: int) -> np.ndarray:
    """s^(loo-1) of one group by the recurrences of PKPO.

    Ascending, 1-based, with m_ii = C(i-1, k-1) and m_ij = C(j-2, k-2) for j > i:

        s_n = m_nn g_n / C(n, k)
        s_i = s_{i+1} + (m_ii g_i + (m_{i,i+1} - m_{i+1,i+1}) g_{i+1}) / C(n, k)

    and the baseline moves from one sample to the next by what exchanging the two is worth.

    See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201).

    Args:
      rewards: `[N]`.
      k: 2 <= k <= N.

    Returns:
      `[N]`: `estimators.pkpo_loo_minus_one` divided by N, in float64.
    """
    n = len(rewards)
    order = np.argsort(rewards)
    g = np.asarray(rewards, np.float64)[order]

    def choose_ratio(a: int, b: int, total: int, drawn: int) -> float:
        """C(a, b) / C(total, drawn), factor by factor."""
        if a < b:
            return 0.0
        spare = np.arange(drawn - b)
        scale = np.prod((drawn - spare) / (total - spare))
        factors = np.arange(b)
        return float(scale * np.prod((a - factors) / (total - (drawn - b) - factors)))

    own = np.array([choose_ratio(i - 1, k - 1, n, k) for i in range(1, n + 1)])
    above = np.array([choose_ratio(i - 1, k - 2, n, k) for i in range(1, n)])
    steps = own * g
    steps[:-1] += (above - own[1:]) * g[1:]
    s = np.cumsum(steps[::-1])[::-1]

    position = np.array([choose_ratio(i - 1, k - 2, n - 1, k - 1) for i in range(1, n)])
    first = np.sum(position * g[1:])  # Without the lowest sample.
    baseline = first + np.concatenate([[0.0], np.cumsum(position * (g[:-1] - g[1:]))])
    result = np.empty(n)
    result[order] = s - k / n * baseline
    return result


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    if not config.groups or len(config.groups) != len(config.group_sizes):
        raise ValueError(
            f"expected as many groups as group_sizes, got {config.groups} and {config.group_sizes}"
        )
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "groups": 1,
            "group_sizes": 3,
            "numpy_repeats": 1,
            "numpy_limit": 0,
            "quadratic_limit": 0,
            "scaling_sizes": 3,
            "scaling_rewards": max(config.scaling_sizes, default=0),
        },
    )
    sizes = (*config.group_sizes, *config.scaling_sizes)
    if not config.repeats >= 1 or not 2 <= config.k <= min(sizes) - 1:
        raise ValueError(
            f"expected repeats >= 1 and 2 <= k <= {min(sizes) - 1}, got repeats = "
            f"{config.repeats} and k = {config.k}"
        )


class Timing(NamedTuple):
    """One function on one shape; times in milliseconds, memory in bytes for each reward."""

    name: str
    groups: int
    group_size: int
    milliseconds: float
    bytes_per_reward: float | None


def contenders(k: int) -> dict[str, Callable[[jax.Array, jax.Array], Any]]:
    """What is compiled, by name: functions of the rewards and of k as an array."""
    return {
        "maxpo": lambda rewards, _: estimators.maxpo(rewards, k),
        "maxpo_traced_k": estimators.maxpo,
        "sort_with_index": lambda rewards, _: sort_with_index(rewards),
        "sort_keys": lambda rewards, _: sort_keys(rewards),
        "leave_two_out_quadratic": lambda rewards, _: leave_two_out_quadratic(rewards, k),
    }


def measure(config: ConfigDict, shape: tuple[int, int], key: jax.Array) -> list[Timing]:
    """Times every contender on one shape, in turns."""
    groups, group_size = shape
    rewards, traced_k = jax.random.normal(key, shape), jnp.float32(config.k)
    calls: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float | None] = {}
    for name, function in contenders(config.k).items():
        if name == "leave_two_out_quadratic" and groups * group_size**2 > config.quadratic_limit:
            continue
        compiled = jax.jit(function).lower(rewards, traced_k).compile()
        analysis = compiled.memory_analysis()
        memory[name] = analysis.temp_size_in_bytes / rewards.size if analysis else None
        calls[name] = functools.partial(compiled, rewards, traced_k)
    if groups * group_size <= config.numpy_limit:
        on_host = np.asarray(rewards)
        memory["pkpo_recurrence"] = None
        calls["pkpo_recurrence"] = lambda: [pkpo_recurrence(g, config.k) for g in on_host]

    limits = {"pkpo_recurrence": config.numpy_repeats}
    taken = take_turns(calls, config.repeats, at_most=limits)
    return [
        Timing(name, groups, group_size, 1e3 * float(np.median(seconds)), memory[name])
        for name, seconds in taken.items()
    ]


def table(timings: Sequence[Timing]) -> dict[str, dict[str, float | None]]:
    """A row for each shape, "groups x N": milliseconds of `maxpo`, and ratios of times."""
    rows = {}
    for shape in dict.fromkeys((t.groups, t.group_size) for t in timings):
        times = {t.name: t for t in timings if (t.groups, t.group_size) == shape}
        ours = times["maxpo"]

        def ratio(above: str, below: str, times: dict[str, Timing] = times) -> float | None:
            if above not in times or below not in times:
                return None
            return times[above].milliseconds / times[below].milliseconds

        rows[f"{shape[0]} x {shape[1]}"] = {
            "maxpo ms": ours.milliseconds,
            "maxpo / sort": ratio("maxpo", "sort_with_index"),
            "keys / sort": ratio("sort_keys", "sort_with_index"),
            "traced k / static": ratio("maxpo_traced_k", "maxpo"),
            "quadratic / maxpo": ratio("leave_two_out_quadratic", "maxpo"),
            "numpy / maxpo": ratio("pkpo_recurrence", "maxpo"),
            "bytes / reward": ours.bytes_per_reward,
        }
    return rows


_LINES = {
    "maxpo": ("#1f4e9c", "-", "o"),
    "sort_with_index": ("#4d4d4d", "--", "s"),
    "leave_two_out_quadratic": ("#e15759", ":", "^"),
}


def scaling_figure(timings: Sequence[Timing]) -> Figure:
    """Time and memory for each reward over the group size, both axes logarithmic."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    for name, (color, dashes, marker) in _LINES.items():
        rows = sorted((t for t in timings if t.name == name), key=lambda t: t.group_size)
        sizes = [t.group_size for t in rows]
        style = {"color": color, "linestyle": dashes, "marker": marker, "label": name}
        nanoseconds = [1e6 * t.milliseconds / (t.groups * t.group_size) for t in rows]
        time_axis.plot(sizes, nanoseconds, **style)
        if all(t.bytes_per_reward for t in rows):  # None at all has no place on a logarithm.
            memory_axis.plot(sizes, [t.bytes_per_reward for t in rows], **style)
    for axis, title in (
        (time_axis, "time for each reward (ns)"),
        (memory_axis, "temporary memory for each reward (bytes)"),
    ):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("group size N")
        axis.set_title(title, loc="left", fontsize=11)
        tidy(axis, margin=0.05)
    time_axis.legend(frameon=False)
    return figure
