"""What `notebooks/maxpo_tour.ipynb` shows: its figures and its bandit, trained while you watch."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import estimators
from maxpo.methods import bind_estimator
from maxpo.plotting import draw_line, legend_below, styles, tidy
from maxpo.studies import bandit
from maxpo.studies.variance.gradient_variance import exact_map_row

__all__ = ["Row", "advantages_over_k", "regime_rows", "shares_over_k", "sums_over_k", "train"]

Row = dict[str, Any]

_MARKERS = "osD^vP*X"
_LIMIT = len(_MARKERS)


def shares_over_k(name: str, rewards: ArrayLike, ks: ArrayLike) -> jax.Array:
    """Advantages divided by k, in the unit of the rewards, for many k in one call.

    An estimator without k is not divided, and the same for each.

    Args:
      name: One of `estimators.names()` that needs only a k.
      rewards: `[..., N]`.
      ks: `[K]`, real numbers; up to N or N - 1, as the estimator has it.

    Returns:
      `[K, ..., N]`.

    >>> shares_over_k("maxpo", [1., 2., 4.], [1., 2.])
    Array([[-2. , -0.5,  2.5],
           [-1. , -1. ,  2. ]], dtype=float32)
    """
    # A schedule that takes the number of the update for k.
    advantages = bind_estimator(name, lambda k: k)
    rewards, ks = jnp.asarray(rewards, jnp.float32), jnp.asarray(ks, jnp.float32)
    over_k = jax.vmap(lambda k: advantages(rewards, k))(ks)
    if "k" in inspect.signature(estimators.get(name)).parameters:
        over_k /= ks.reshape(-1, *[1] * rewards.ndim)
    return over_k


def advantages_over_k(rewards: ArrayLike, names: Sequence[str], *, columns: int = 3) -> Figure:
    """What each estimator gives to each sample of one group as k grows, a panel for each.

    Samples can be told apart in gray: the lighter, the higher the reward, and each has a marker.

    Args:
      rewards: `[N]`, 2 to 8 of them.
      names: Estimators.
      columns: Panels side by side.

    Raises:
      ValueError: If `rewards` is no vector of 2 to 8 numbers.
    """
    group = np.asarray(rewards, np.float32)
    if group.ndim != 1 or not 2 <= len(group) <= _LIMIT:
        raise ValueError(
            f"rewards: expected a vector of 2 to {_LIMIT} numbers, got shape {list(group.shape)}"
        )
    group = np.sort(group)
    most = len(group) - 1
    ks = np.linspace(1, most, 12 * (most - 1) + 1)
    colors = mpl.colormaps["cividis"](np.linspace(0, 0.9, len(group)))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.7 * columns, 2.9 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.axhline(0, color="black", linewidth=0.8)
        shares = shares_over_k(name, group, ks)
        for index in reversed(range(len(group))):
            axis.plot(
                ks,
                shares[:, index],
                color=colors[index],
                marker=_MARKERS[index],
                markevery=12,
                markersize=5,
                label=f"{group[index]:g}",
            )
        axis.set_title(
            name, loc="left", fontsize=11, fontweight="bold" if name == "maxpo" else None
        )
        tidy(axis, margin=0.05)
        axis.set_xticks(range(1, most + 1))
    for axis in axes[-1]:
        axis.set_xlabel("k")
    figure.supylabel("advantage / k", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="reward", loc="outside lower center", ncols=_LIMIT, frameon=False
    )
    return figure


def sums_over_k(
    rewards: ArrayLike, names: Sequence[str], *, shifts: Sequence[float] = (0.0, 2.0)
) -> Figure:
    """Sum of a group's advantages over the sum of their absolute values, over k.

    1: no sample is discouraged; 0: centered; -1: none is encouraged. Lines are means over groups,
    bands hold the middle 90% of the groups. A panel for each shift.

    Args:
      rewards: `[G, N]`, G groups.
      names: Estimators.
      shifts: Numbers added to all rewards.
    """
    groups = np.asarray(rewards, np.float32)
    ks = np.arange(1, groups.shape[-1], dtype=np.float32)
    figure = Figure(figsize=(5.3 * len(shifts), 3.9), layout="constrained")
    axes = figure.subplots(1, len(shifts), sharey=True, squeeze=False)[0]
    for axis, shift in zip(axes, shifts, strict=True):
        for name, style in styles(names).items():
            shares = np.asarray(shares_over_k(name, groups + shift, ks))
            sizes = np.abs(shares).sum(axis=-1)
            sums = shares.sum(axis=-1) / np.where(sizes == 0, 1, sizes)
            low, high = np.quantile(sums, (0.05, 0.95), axis=-1)
            draw_line(axis, ks, sums.mean(axis=-1), low, high, name, style)
        title = f"{groups.shape[0]} groups of N = {groups.shape[-1]}"
        axis.set_title(title if shift == 0 else f"the same, all rewards {shift:+g}", loc="left")
        axis.set_xlabel("k")
        tidy(axis, margin=0.05)
        axis.set_xlim(0.7, ks[-1] + 0.3)
    axes[0].set_ylabel("sum of advantages / sum of their sizes")
    legend_below(figure, axes[0])
    return figure


def regime_rows(
    num_arms: Sequence[int], success_rates: Sequence[float], *, group_size: int
) -> list[Row]:
    """Rows for `variance_figures.regime_map`, in closed form alone.

    Args:
      num_arms: Numbers of arms, each at least 2.
      success_rates: Probabilities of a right arm, strictly between 0 and 1.
      group_size: N; k goes from 1 to N - 1.

    Returns:
      For each number of arms, rate and k, `exact_log2_ratio` of MaxPO's gradient variance to that
      of pkpo_loo_minus_one.
    """
    return [
        exact_map_row(arms, rate, group_size=group_size, k=k)
        for arms in num_arms
        for rate in success_rates
        for k in range(1, group_size)
    ]


def train(config: ConfigDict) -> Iterator[list[Mapping[str, Any]]]:
    """Trains the bandits of `maxpo.studies.bandit`, and nothing is written to disk.

    Args:
      config: As of the bandit study.

    Yields:
      The history so far, for `bandit.learning_curves`: at the start and after each
      `evaluate_every` updates of all estimators. Always the same list, which grows.

    Raises:
      ValueError: If a value of the config makes no sense.
    """
    bandit.check_config(config)
    trainer = bandit.make_trainer(config)
    rates = bandit.learning_rates(config)
    states = dict.fromkeys(rates, trainer.init(trainer.keys))
    history: list[Mapping[str, Any]] = []
    for step in range(0, config.updates + 1, config.evaluate_every):
        for number, name in enumerate(states):
            if step:
                states[name] = trainer.advance(number, rates[name], trainer.keys, states[name])
            metrics = trainer.evaluate(number, trainer.keys, states[name])
            history.append({"step": step, "method": name, **bandit.summarize(metrics)})
        yield history
