"""The figures of the gradient variance study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from maxpo.plotting import WIDTH, draw_line, label_ticks, legend_below, styles, tidy

__all__ = ["regime_map", "sweeps"]

# Estimators of J_k's gradient: those that can be compared with one another.
_SHOWN = ("pkpo", "pkpo_loo", "pkpo_loo_minus_one", "maxpo")

# Axis of a sweep: label, scale, and what its position is, where not the value swept.
_PANELS: Mapping[str, tuple[str, str, str]] = {
    "num_arms": ("arms", "log", "value"),
    "group_size": ("group size N, with k = N/4", "log", "value"),
    "success_rate": ("success rate, 0/1 rewards", "logit", "value"),
    "tail_exponent": ("tail exponent of Pareto rewards", "linear", "value"),
    "logit_noise": ("entropy (nats), peaked on random arms", "linear", "entropy"),
    "logit_tilt": ("entropy (nats), peaked on good arms", "linear", "entropy"),
}


def _as_factor(ratio: float) -> str:
    return f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}"


def sweeps(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Variance of each estimator over that of pkpo_loo_minus_one, a panel for each axis.

    Bands are two standard errors. Points that are not resolved are left out.

    Args:
      rows: Rows of the section `sweep`.
    """
    names = [name for name in _SHOWN if all(name in row["variance"] for row in rows)]
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    lines = styles(names)
    for axis, (name, (label, scale, position)) in zip(axes.flat, _PANELS.items(), strict=True):
        points = [row for row in rows if row["axis"] == name and row["shown"]]
        shown = [row for row in points if row["resolved"]]
        for estimator in names:
            log2 = np.array([row["log2_ratio"][estimator] for row in shown])
            error = 2 * np.array([row["log2_ratio_error"][estimator] for row in shown])
            marker = "o" if estimator == "maxpo" else ""
            style = lines[estimator] | {"marker": marker, "markersize": 4}
            x = [row[position] for row in shown]
            low, high = 2 ** (log2 - error), 2 ** (log2 + error)
            draw_line(axis, x, 2**log2, low, high, estimator, style)
        axis.set_xscale(scale)
        if scale != "linear":
            label_ticks(axis, sorted({row[position] for row in points}))
        axis.set_yscale("log", base=2)
        axis.set_xlabel(label)
        axis.yaxis.set_major_formatter(lambda y, _: _as_factor(y))
        tidy(axis, margin=0.05)
    axes[0, 0].set_ylim(1 / 8, 32)
    figure.supylabel("variance / variance of pkpo_loo_minus_one")
    legend_below(figure, axes.flat[0])
    return figure


def _in_cell(ratio: float) -> str:
    """Two digits, as far as a cell has room for them."""
    if ratio >= 100:
        return ">99"
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def regime_map(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Where MaxPO has less variance than pkpo_loo_minus_one: a heat map for each number of arms.

    Colors are the closed form, clipped at a factor of 8; the line is where both have the same.
    The colors get lighter from one end to the other, so that they also read in gray.

    Args:
      rows: Rows of the section `map`.
    """
    arms = list(dict.fromkeys(row["num_arms"] for row in rows))
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    rates = sorted({row["success_rate"] for row in rows})
    ks = sorted({row["k"] for row in rows})
    n = rows[0]["group_size"]
    for axis, num_arms in zip(axes, arms, strict=True):
        ratios = {
            (row["success_rate"], row["k"]): row["exact_log2_ratio"]
            for row in rows
            if row["num_arms"] == num_arms
        }
        grid = np.array([[ratios[rate, k] for k in ks] for rate in rates])
        columns, lines = np.arange(len(ks)), np.arange(len(rates))
        image = axis.pcolormesh(columns, lines, grid, cmap="cividis", vmin=-3, vmax=3)
        if min(grid.shape) > 1 and grid.min() < 0 < grid.max():
            axis.contour(columns, lines, grid, levels=[0], colors="black", linewidths=2)
        for (line, column), value in np.ndenumerate(grid):
            axis.text(
                column,
                line,
                _in_cell(2**value),
                color="white" if value < 0.8 else "black",
                fontsize=7,
                ha="center",
                va="center",
            )
        axis.set_title(
            f"{num_arms} arms: maxpo has less in {np.mean(grid < 0):.0%} of the cells",
            loc="left",
            fontsize=11,
        )
        axis.set_xticks(columns, [f"{k / n:.2f}" for k in ks], rotation=90)
        axis.set_yticks(lines, [f"{rate:g}" for rate in rates])
        axis.set_xlabel(f"k / N   (N = {n})")
    axes[0].set_ylabel("success rate")
    bar = figure.colorbar(image, ax=axes, extend="both", ticks=range(-3, 4))
    bar.ax.set_yticklabels([_as_factor(2.0**power) for power in range(-3, 4)])
    bar.set_label("variance of maxpo / variance of pkpo_loo_minus_one\ndark: maxpo has less")
    return figure
