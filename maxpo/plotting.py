"""How methods are drawn: the same line in every figure, and no two lines alike."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

__all__ = ["STYLES", "Style", "draw_line", "legend_below", "styles"]

Style = dict[str, Any]

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


def legend_below(figure: Figure, axis: Axes) -> None:
    """The legend of one of the panels under all of them, in as many rows as it takes."""
    handles, labels = axis.get_legend_handles_labels()
    # At this size a line and the gap beside it are as wide as 6 letters, and 12 fill an inch.
    letters = sum(len(label) + 6 for label in labels)
    rows = math.ceil(letters / (12 * figure.get_figwidth()))
    columns = math.ceil(len(labels) / max(rows, 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(columns, 1), frameon=False)
