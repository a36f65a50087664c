"""Curves of a report, as SVG inside the page."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from maxpo.lm.training._report_html import escape, show

__all__ = ["Curve", "chart", "color_of", "legend", "smooth"]

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 20
MOST_POINTS = 240  # More could not be told apart.
SMOOTHED = 25  # Steps are averaged to about this many points.
# Told apart by those who see few colors, in this order.
COLORS = ("#1f4e9c", "#e07b39", "#2a9d8f", "#b5467f", "#8a6d3b", "#5f6b7a", "#7a5cc0", "#97a82b")


class Curve(NamedTuple):
    """Values `y` at steps `x`, without those that are not finite, and the color of the line."""

    x: Sequence[float]
    y: Sequence[float]
    color: str


def color_of(number: int) -> str:
    """The color of a line by its number."""
    return COLORS[number % len(COLORS)]


def chart(title: str, curves: Mapping[str, Curve], *, from_zero: bool = False) -> str:
    """A panel: each curve smoothed, and as it is behind that where there is one alone.

    Args:
      title: What it shows.
      curves: By label; at least one, none empty.
      from_zero: Whether the vertical axis begins at 0.
    """
    drawing = _Drawing.around(curves.values(), from_zero)
    parts = drawing.axes()
    value = ""
    if len(curves) == 1:
        (curve,) = curves.values()
        raw = _averaged(curve, MOST_POINTS)
        parts.append(drawing.line(raw, title, kind="raw"))
        value = f"<b>{show(smooth(curve).y[-1])}</b>"
    parts += [drawing.line(smooth(curve), label) for label, curve in curves.items()]
    return (
        f"<figure><figcaption><span>{escape(title)}</span>{value}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>\n"
    )


def legend(colors: Mapping[str, str]) -> str:
    """Label to color."""
    items = (
        f'<span><i style="background:{color}"></i>{escape(label)}</span>'
        for label, color in colors.items()
    )
    return f'<div class="legend">{"".join(items)}</div>\n'


def smooth(curve: Curve) -> Curve:
    """About `SMOOTHED` means of neighbors; few points as they are."""
    return _averaged(curve, SMOOTHED) if len(curve.x) >= 2 * SMOOTHED else curve


class _Drawing(NamedTuple):
    """From steps and values to places in a panel, and what is drawn there."""

    first: float
    last: float
    ticks: list[float]

    @classmethod
    def around(cls, curves: Collection[Curve], from_zero: bool) -> "_Drawing":
        places = [x for curve in curves for x in curve.x]
        values = [y for curve in curves for y in curve.y]
        ticks = _ticks(min([*values, 0.0] if from_zero else values), max(values))
        return cls(min(places), max(places), ticks)

    def across(self, x: float) -> float:
        share = (x - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> list[str]:
        parts = [
            f'<path class="grid" d="M{LEFT} {self.up(y):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 5}" y="{self.up(y) + 3.5:.1f}" text-anchor="end">{show(y)}</text>'
            for y in self.ticks
        ]
        ends = {self.first: "start", self.last: "end"}
        for x, anchor in ends.items() if len(ends) > 1 else [(self.first, "middle")]:
            word = "step " if x == self.first else ""
            place = f'x="{self.across(x):.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}"'
            parts.append(f"<text {place}>{word}{x:.0f}</text>")
        return parts

    def line(self, curve: Curve, label: str, kind: str = "smooth") -> str:
        points = [f"{self.across(x):.1f} {self.up(y):.1f}" for x, y in zip(*curve[:2], strict=True)]
        if len(points) == 1:
            x, y = points[0].split()
            return f'<circle cx="{x}" cy="{y}" r="3" fill="{curve.color}"/>'
        path = f'<path class="{kind}" stroke="{curve.color}" d="M{"L".join(points)}">'
        return f"{path}<title>{escape(label)}</title></path>"


def _averaged(curve: Curve, most: int) -> Curve:
    """The means of at most that many pieces, as equal as can be."""
    count = min(most, len(curve.x))
    ends = [len(curve.x) * i // count for i in range(count + 1)]
    pieces = [slice(a, b) for a, b in itertools.pairwise(ends)]
    x, y = ([sum(of[p]) / len(of[p]) for p in pieces] for of in (curve.x, curve.y))
    return Curve(x, y, curve.color)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers around all values.

    >>> _ticks(0.0, 0.93)
    [0.0, 0.5, 1.0]
    >>> _ticks(2.0, 2.0)
    [1.0, 2.0, 3.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = abs(low) / 2 or 1.0
        low, high = (low - around, high + around) if low else (0.0, 1.0)
    size = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = max(size * factor for factor in (1, 2, 5) if size * factor <= (high - low) / 1.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) if step > 1e-9 else i * step for i in range(first, last + 1)]
