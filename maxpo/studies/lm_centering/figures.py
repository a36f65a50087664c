"""Learning curves at each method's best rate, and pass@k over the learning rate."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maxpo.plotting import WIDTH, draw_line, label_ticks, legend_below, styles, tidy, with_errors
from maxpo.studies.lm_centering.comparison import Curves, best

__all__ = ["figure"]


def figure(
    by_start: Mapping[int, Curves], in_format: Mapping[int, float], eval_k: int, evaluate_every: int
) -> Figure:
    """A row for each start, bands of two standard errors over seeds.

    Args:
      by_start: What `comparison.curves` returned.
      in_format: The share of the start's samples that are in format.
      eval_k: The k of pass@k.
      evaluate_every: Updates from one point of a curve to the next.
    """
    figure = Figure(figsize=(WIDTH, 4 * len(by_start)), layout="constrained")
    axes = figure.subplots(len(by_start), 2, squeeze=False)
    for (steps, of_start), (left, right) in zip(by_start.items(), axes, strict=True):
        start = f"{in_format[steps]:.1%} of the start's samples in format"
        _draw_learning(left, of_start, evaluate_every)
        tidy(left, f"gain in pass@{eval_k}, {start}")
        _draw_rates(right, of_start)
        tidy(right, f"final pass@{eval_k}, {start}")
    for axis, label in zip(
        axes[-1], ("updates, each method at its best rate", "learning rate"), strict=True
    ):
        axis.set_xlabel(label)
    legend_below(figure, axes[0, 0])
    return figure


def _draw_learning(axis: Axes, of_start: Curves, evaluate_every: int) -> None:
    for method, style in styles(list(of_start)).items():
        curve = best(of_start[method]).curve
        gain = curve - curve[0]
        updates = evaluate_every * np.arange(len(gain))
        draw_line(axis, *with_errors(updates, gain.mean(axis=1), _errors(gain)), method, style)


def _draw_rates(axis: Axes, of_start: Curves) -> None:
    for method, style in styles(list(of_start)).items():
        rates = sorted(of_start[method])
        final = np.stack([of_start[method][rate][-1] for rate in rates])
        draw_line(axis, *with_errors(rates, final.mean(axis=1), _errors(final)), method, style)
    axis.set_xscale("log")
    label_ticks(axis, rates)


def _errors(values: np.ndarray) -> np.ndarray:
    return values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
