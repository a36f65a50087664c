"""The figures of the centering study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maxpo.plotting import STYLES, WIDTH, legend_below, tidy
from maxpo.studies.centering.prediction import is_measured, rank_correlation
from maxpo.studies.variance.gradient_variance import PAIR

__all__ = ["coordinates", "gains", "prediction"]

_MARKERS = "osD^v"
_SHADES = ("#1f4e9c", "#4d8fd1", "#a3c8ea", "#59a14f", "#8cd17d")
_ADAPTIVE = ("sgd or momentum", "adam")

Rows = Sequence[Mapping[str, Any]]


def _ticks(axis: Axes, values: Sequence[float]) -> None:
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()


def prediction(cells: Rows) -> Figure:
    """Samples that MaxPO needs over those of its opponent: measured over predicted.

    The rank correlation of a panel is that of its points.

    Args:
      cells: Those of the summary; those that are not measured are left out.
    """
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    shown = [row for row in cells if is_measured(row)]
    ratios = [row[label] for row in shown for label in ("predicted_ratio", "samples_ratio")]
    ends = min([*ratios, 1.0]) / 1.1, max([*ratios, 1.0]) * 1.1
    groups = sorted({row["groups_per_update"] for row in shown})
    for axis, title in zip(axes, _ADAPTIVE, strict=True):
        rows = [row for row in shown if (row["optimizer"] == "adam") == (title == "adam")]
        for number, count in enumerate(groups):
            own = [row for row in rows if row["groups_per_update"] == count]
            color = _SHADES[number % len(_SHADES)]
            axis.errorbar(
                [row["predicted_ratio"] for row in own],
                [row["samples_ratio"] for row in own],
                [row["samples_ratio_sem"] for row in own],
                [row["predicted_ratio_sem"] for row in own],
                fmt=_MARKERS[number % len(_MARKERS)],
                color=color,
                markeredgecolor="#222222",
                markeredgewidth=0.5,
                elinewidth=0.8,
                label=f"{count} group{'s' if count > 1 else ''} in an update",
            )
        axis.plot(ends, ends, color="#777777", linewidth=1, linestyle="--", zorder=0)
        axis.axhline(1, color="#dddddd", linewidth=1, zorder=0)
        axis.axvline(1, color="#dddddd", linewidth=1, zorder=0)
        axis.set_xscale("log")
        axis.set_yscale("log")
        rank = rank_correlation(
            *([row[label] for row in rows] for label in ("predicted_ratio", "samples_ratio"))
        )
        text = f": rank correlation {rank:.2f}" if np.isfinite(rank) else ""
        tidy(axis, title + text, margin=0.05)
        axis.set_xlabel("predicted from moments of the gradient")
    steps = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
    _ticks(axes[0], [x for x in steps if ends[0] <= x <= ends[1]])
    axes[0].set_ylabel("samples to the target,\nmaxpo / pkpo_loo_minus_one")
    legend_below(figure, axes[0])
    return figure


def gains(cells: Rows, grid: Mapping[str, Sequence[Any]]) -> Figure:
    """Final J_k of MaxPO minus that of its opponent, over the grid; colors are standard errors.

    Args:
      cells: Those of the summary.
      grid: The config's `grid`: optimizers and groups per update are panels, success rates and k
        are rows and columns.
    """
    optimizers, counts = grid["optimizer"], grid["groups_per_update"]
    rates, ks = grid["success_rate"], grid["k"]
    width, height = max(1.2 * len(ks), 3.2), max(0.7 * len(rates), 1.8)
    size = (min(width * len(counts) + 2, WIDTH), (height + 0.4) * len(optimizers) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(optimizers), len(counts), sharex=True, sharey=True, squeeze=False)
    axis_names = ("optimizer", "groups_per_update", "success_rate", "k")
    # The grid stands before further points of the same place.
    by_place = {tuple(row[name] for name in axis_names): row for row in reversed(cells)}
    for (line, column), axis in np.ndenumerate(axes):
        where = (optimizers[line], counts[column])
        scores = np.zeros((len(rates), len(ks)))
        for (y, x), _ in np.ndenumerate(scores):
            row = by_place[(*where, rates[y], ks[x])]
            scores[y, x] = row["difference"] / max(row["difference_sem"], 1e-12)
            text = f"{1e3 * row['difference']:+.1f}\nvar. {row['variance_ratio']:.2f}"
            color = "white" if scores[y, x] < -1 else "black"
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
        image = axis.imshow(scores, cmap="cividis", vmin=-8, vmax=8, origin="lower", aspect="auto")
        axis.set_xticks(range(len(ks)), [f"{k:g}" for k in ks])
        axis.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        title = f"{where[0]}, {where[1]} group{'s' if where[1] > 1 else ''} in an update"
        axis.set_title(title, loc="left", fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("k")
    for axis in axes[:, 0]:
        axis.set_ylabel("success rate at the start")
    bar = figure.colorbar(image, ax=axes, extend="both")
    bar.set_label(
        "maxpo ahead (light) or behind, in standard errors\n"
        "numbers: difference times 1000, variance ratio"
    )
    return figure


def coordinates(rows: Rows) -> Figure:
    """By coordinate: the noise of the two estimators, and Adam's mean direction, by b2.

    Args:
      rows: Those of `maxpo.studies.centering.frozen.coordinates`.
    """
    panels = len(rows) + 1
    lines = -(-panels // 2)
    figure = Figure(figsize=(WIDTH, 4.2 * lines), layout="constrained")
    axes = figure.subplots(lines, 2, squeeze=False).ravel()
    for axis in axes[panels:]:
        axis.set_visible(False)
    noise = [np.asarray(rows[0][name]["noise"]) for name in PAIR]
    axes[0].plot(*noise, "o", markersize=3, alpha=0.5, color=STYLES["maxpo"][0])
    axes[0].axline((0, 0), slope=1, color="#777777", linewidth=1, linestyle="--")
    axes[0].set_xlabel(f"noise of a coordinate, {PAIR[0]}")
    axes[0].set_ylabel(f"the same, {PAIR[1]}")
    tidy(axes[0], "standard deviation of one group's gradient", margin=0.05)
    for axis, row in zip(axes[1:panels], rows, strict=True):
        for name, marker in zip(PAIR, "so", strict=True):
            values = row[name]
            axis.plot(
                values["predicted"],
                values["measured"],
                marker,
                markersize=3,
                alpha=0.5,
                color=STYLES[name][0],
                label=name,
            )
        axis.axline((0, 0), slope=1, color="#777777", linewidth=1, linestyle="--")
        axis.set_xlabel("mean direction of Adam, predicted")
        axis.set_ylabel("measured")
        tidy(axis, f"b2 = {row['b2']:g}", margin=0.05)
    legend_below(figure, axes[1])
    return figure
