"""The figure of an evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maxpo.evaluate._curves import Curve
from maxpo.evaluate._evaluation import Evaluation
from maxpo.evaluate._report import metrics_of
from maxpo.plotting import WIDTH, draw_line, label_ticks, legend_below, styles, tidy, with_errors

__all__ = ["draw"]

BAND = 2  # Standard errors on either side, as in all figures: about 95%.


def draw(evaluation: Evaluation) -> Figure:
    """Curves over k with bands of standard errors; below them their differences to the first."""
    metrics = metrics_of(evaluation)
    first, *others = evaluation.sources
    rows = 2 if others else 1
    figure = Figure(figsize=(WIDTH / 2 * len(metrics), 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(metrics), squeeze=False)
    for column, (name, metric) in zip(axes.T, metrics.items(), strict=True):
        ks = metric.curves[first].k.tolist()
        _panel(column[0], name, ks, metric.curves)
        if others:
            differences = {first: None, **metric.differences}
            _panel(column[1], f"{name}, less that of {first}", ks, differences)
    legend_below(figure, axes[0, 0])
    return figure


def _panel(axis: Axes, title: str, ks: Sequence[int], curves: Mapping[str, Curve | None]) -> None:
    """Lines of all methods; a None is the one that is subtracted from the others."""
    for label, style in styles(list(curves)).items():
        curve = curves[label]
        if curve is None:
            axis.axhline(0, **style)
            continue
        # No band where there is no error: of one problem, none is known.
        line = with_errors(ks, curve.value, np.nan_to_num(curve.error), width=BAND)
        draw_line(axis, *line, label, {**style, "marker": style["marker"] or "."})
    axis.set_xscale("log", base=2)
    label_ticks(axis, ks)
    axis.set_xlabel(f"k (bands: ± {BAND} standard errors)")
    tidy(axis, title, margin=0.01)
