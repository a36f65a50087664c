"""Figures and the table of a comparison of methods."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from maxpo import plotting
from maxpo.lm.training.evaluation import Curve
from maxpo.plotting import WIDTH, Line, draw_line, label_ticks, styles, tidy, with_errors

__all__ = ["BAND", "PANELS", "POINTS", "History", "best_of_k_figure", "learning_curves"]

PANELS = {
    "mean_reward": "mean reward of the training groups",
    "max_at_k": "max@{k} of the training groups",
    "zero_variance_groups": "share of groups without a signal",
    "entropy": "entropy of a token (nats)",
}
HELD_OUT = {
    "eval_pass_at_{k}": "pass@{k} on held-out problems",
    "eval_max_at_{k}": "max@{k} on held-out problems",
}
POINTS = 25  # Steps of a learning curve are averaged to about this many points.
BAND = 1.96  # Standard errors on either side: 95%.

History = Sequence[Mapping[str, Any]]


def best_of_k_figure(panels: Mapping[str, Mapping[str, Curve]], before: str) -> Figure:
    """Curves over log2 k with bands of 95%, one panel for each quantity.

    Args:
      panels: Title to label to curve.
      before: The label of the model that all others started from; a panel without it is one of
        differences to it.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(WIDTH / 2 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        lines = styles([label for label in curves if label != before])
        lines[before] = {"color": "black", "linestyle": (0, (1, 1.5)), "linewidth": 1.8}
        if before not in curves:
            axis.axhline(0, **lines[before])
        for label, curve in curves.items():
            # No band where there is no error: of one problem, none is known.
            line = with_errors(curve.k, curve.value, np.nan_to_num(curve.error), width=BAND)
            draw_line(axis, *line, label, lines[label])
        axis.set_xscale("log", base=2)
        ks = sorted({k for curve in curves.values() for k in curve.k})
        label_ticks(axis, ks)
        axis.set_xlabel("k")
        tidy(axis, title, margin=0.01)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def learning_curves(histories: Mapping[str, Sequence[History]], eval_k: int) -> Figure:
    """What was logged while training, averaged over some steps and all seeds.

    Bands are 95%: over seeds, or over the steps that make a point where there is one seed. Where
    held-out problems were judged meanwhile, each evaluation is a point, and the bands are those of
    the problems where there is one seed. Runs that ended early are drawn as far as all seeds go.

    Args:
      histories: Label to what each seed logged.
      eval_k: The k of what was logged.
    """
    panels = {
        title.format(k=eval_k): {
            label: _smoothed(seeds, name) for label, seeds in histories.items()
        }
        for name, title in PANELS.items()
    }
    for name, title in HELD_OUT.items():
        for k in sorted({1, eval_k}):
            metric = name.format(k=k)
            if all(any(metric in row for row in seeds[0]) for seeds in histories.values()):
                panels[title.format(k=k)] = {
                    label: _evaluated(seeds, metric) for label, seeds in histories.items()
                }
    return plotting.learning_curves(panels, xlabel="steps")


def _judged(history: History) -> History:
    """The lines of steps after which held-out problems were judged."""
    return [row for row in history if any(name.startswith("eval_") for name in row)]


def _evaluated(seeds: Sequence[History], metric: str) -> Line:
    """A point for each evaluation."""
    rows = list(zip(*map(_judged, seeds), strict=False))
    values = np.array([[row[metric] for row in of_step] for of_step in rows])
    errors = (
        [_error(of_step) for of_step in values]
        if len(seeds) > 1
        else [row[f"{metric}_sem"] for (row,) in rows]
    )
    places = np.array([of_step[0]["step"] for of_step in rows])
    return with_errors(places, values.mean(axis=1), np.nan_to_num(errors), width=BAND)


def _smoothed(seeds: Sequence[History], name: str) -> Line:
    """The mean of about `POINTS` pieces of the run."""
    rows = list(zip(*seeds, strict=False))
    values = np.array([[row[name] for row in of_step] for of_step in rows]).T
    places = np.array([of_step[0]["step"] for of_step in rows])
    pieces = np.array_split(np.arange(len(places)), min(POINTS, len(places)))
    errors = [
        _error(values[:, piece].mean(axis=1) if len(seeds) > 1 else values[0, piece])
        for piece in pieces
    ]
    middles = np.array([places[piece].mean() for piece in pieces])
    means = [values[:, piece].mean() for piece in pieces]
    return with_errors(middles, means, errors, width=BAND)


def _error(samples: np.ndarray) -> float:
    return samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else 0.0
