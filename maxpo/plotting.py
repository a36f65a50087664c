"""What figures share: lines with bands, the same for a method in every figure, and panels."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

__all__ = [
    "STYLES",
    "WIDTH",
    "Line",
    "Style",
    "draw_line",
    "from_rows",
    "label_ticks",
    "learning_curves",
    "legend_below",
    "styles",
    "tidy",
    "with_errors",
]

Style = dict[str, Any]

WIDTH = 11.0  # Inches of figures with panels side by side, so that letters have one size on a page.

# Dashes and shades besides colors, so that lines can be told apart in gray.
STYLES: dict[str, tuple[str, Any]] = {
    "reinforce": ("#9a9a9a", (0, (1, 2))),
    "rloo": ("#4d4d4d", "--"),
    "grpo": ("#b07aa1", "-."),
    "pkpo": ("#edc948", (0, (1, 1))),
    "pkpo_loo": ("#59a14f", (0, (5, 1, 1, 1))),
    "pkpo_loo_minus_one": ("#e15759", (0, (4, 2))),
    "maxpo": ("#1f4e9c", "-"),
}
# For methods without a line of their own, in turn.
_OTHERS: tuple[tuple[str, Any], ...] = (
    ("#76b7b2", "-"),
    ("#9c755f", "--"),
    ("#ff9da7", "-."),
    ("#17becf", (0, (5, 1, 1, 1))),
    ("#8cd17d", (0, (4, 2))),
)
_MARKERS = "osD^vP*X"


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """The line of each method, as arguments of `Axes.plot`; all are different.

    The first method of an estimator looks as in every other figure. Further ones are lighter, with
    dashes of their own; from the third on, a marker tells them apart, a number in the end.

    Args:
      labels: Different names. What stands before a space is the estimator.
    """
    found: dict[str, Style] = {}
    others: list[str] = []
    used: dict[str, int] = {}
    for label in labels:
        estimator = label.split(" ")[0]
        line = STYLES.get(estimator)
        if line is None:
            if estimator not in others:
                others.append(estimator)
            line = _OTHERS[others.index(estimator) % len(_OTHERS)]
        color, dashes = line
        further = used[color] = used.get(color, -1) + 1
        white = min(0.38 * further, 0.7)
        found[label] = {
            "color": tuple(np.array(to_rgb(color)) * (1 - white) + white),
            "linestyle": dashes if not further else _dashes(further),
            "linewidth": 2.4 if estimator == "maxpo" else 1.5,
            "zorder": 3 if estimator == "maxpo" else 2,
            "marker": _marker(further),
            "markersize": 5,
        }
    return found


def _dashes(further: int) -> tuple[int, tuple[int, int]]:
    """Five kinds of dashes, ever shorter ones with ever longer gaps."""
    gap = (further - 1) % 5 + 1
    return (0, (6 - gap, gap))


def _marker(further: int) -> str:
    """Nothing for the lines that shades tell apart, then a shape each, then numbers."""
    number = further - 3
    if number < 0:
        return ""
    return _MARKERS[number] if number < len(_MARKERS) else f"${further}$"


def draw_line(
    axis: Axes,
    x: Sequence[float] | np.ndarray,
    y: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    label: str,
    style: Style,
) -> None:
    """A line with a band from `low` to `high`."""
    axis.plot(x, y, label=label, **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)


class Line(NamedTuple):
    """A line with its band.

    Attributes:
      x: `[n]`.
      y: `[n]`.
      low: `[n]`, the lower end of the band.
      high: `[n]`, its upper end.
    """

    x: Sequence[float] | np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def with_errors(
    x: Sequence[float] | np.ndarray,
    means: Sequence[float] | np.ndarray,
    errors: Sequence[float] | np.ndarray,
    *,
    width: float = 2.0,
) -> Line:
    """A line of means with a band of `width` standard errors on either side."""
    y, error = np.asarray(means), width * np.asarray(errors)
    return Line(x, y, y - error, y + error)


def from_rows(
    rows: Sequence[Mapping[str, Any]], x: str, metric: str, *, by: str = "method"
) -> dict[str, Line]:
    """The lines of a metric and its `_sem` in logged rows, one for each label.

    Args:
      rows: What was logged, in order.
      x: The field on the horizontal axis.
      metric: The field on the vertical axis.
      by: The field of the labels.
    """
    lines = {}
    for label in dict.fromkeys(row[by] for row in rows):
        own = [row for row in rows if row[by] == label]
        lines[label] = with_errors(
            [row[x] for row in own],
            [row[metric] for row in own],
            [row[f"{metric}_sem"] for row in own],
        )
    return lines


def learning_curves(
    panels: Mapping[str, Mapping[str, Line]], *, xlabel: str, log: Collection[str] = ()
) -> Figure:
    """Lines over training, one panel for each title, two side by side, with one legend for all.

    Args:
      panels: Title to label to line; all have the same labels.
      xlabel: What is on the horizontal axis.
      log: Titles of panels with a logarithmic axis.
    """
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(WIDTH, 3.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, sharex=True, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for (label, line), style in zip(lines.items(), styles(list(lines)).values(), strict=True):
            draw_line(axis, *line, label, style)
        tidy(axis, title)
        if title in log:
            axis.set_yscale("log")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    legend_below(figure, axes.flat[0])
    return figure


def tidy(axis: Axes, title: str = "", *, margin: float = 0.0) -> None:
    """No frame on the top and the right, the title on the left, and lines up to the edge."""
    if title:
        axis.set_title(title, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=margin)


def label_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks of the x-axis at those values whose numbers do not run into one another, from the last.

    Args:
      axis: Its scale is set.
      values: Ascending. None: the axis stays as it is.
    """
    if not values:
        return
    places = axis.xaxis.get_transform().transform(np.asarray(values, float))
    least = (places[-1] - places[0]) / 16
    kept = [len(values) - 1]
    for number in reversed(range(len(values) - 1)):
        if places[kept[-1]] - places[number] >= least:
            kept.append(number)
    ticks = [values[number] for number in reversed(kept)]
    axis.minorticks_off()
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def legend_below(figure: Figure, axis: Axes) -> None:
    """The legend of one of the panels under all of them, in as many rows as it takes."""
    handles, labels = axis.get_legend_handles_labels()
    # At this size a line and the gap beside it are as wide as 6 letters, and 11 fill an inch.
    letters = sum(len(label) + 6 for label in labels)
    rows = math.ceil(letters / (11 * figure.get_figwidth()))
    columns = math.ceil(len(labels) / max(rows, 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(columns, 1), frameon=False)
