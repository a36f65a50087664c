"""Each method at its own best learning rate, against MaxPO at its own, seed by seed.

The rate is chosen by the first half of the seeds and everything is reported on the second one:
choosing and reporting on the same seeds would flatter whoever is noisiest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxpo.studies.centering.comparison import points_to
from maxpo.studies.variance import moments

__all__ = ["Curves", "best", "compare", "curves", "updates_to"]

Curves = dict[str, dict[float, np.ndarray]]
"""Method to learning rate to pass@k `[E + 1, S]`."""


class Best(NamedTuple):
    """A method at its best learning rate.

    Attributes:
      rate: The rate that is best for the first half of the seeds.
      curve: `[E + 1, S']`, pass@k of the second half.
    """

    rate: float
    curve: np.ndarray


def curves(rows: Sequence[Mapping[str, Any]], place: int) -> dict[int, Curves]:
    """What was logged, by start: the k number `place` of each row's pass@k."""
    found: dict[int, Curves] = {}
    for row in rows:
        of_start = found.setdefault(row["fine_tuning"], {})
        values = np.asarray(row["pass_at_k"], np.float64)[..., place]
        of_start.setdefault(row["method"], {})[row["learning_rate"]] = values
    return found


def best(by_rate: Mapping[float, np.ndarray]) -> Best:
    """The rate with the highest last pass@k on the first half, and the curve of the second."""
    half = next(iter(by_rate.values())).shape[1] // 2
    rate = max(by_rate, key=lambda rate: by_rate[rate][-1, :half].mean())
    return Best(rate, by_rate[rate][:, half:])


def updates_to(target: float, curve: np.ndarray, evaluate_every: int) -> float:
    """Updates after which a curve `[E + 1]` first reaches a value, in a straight line between.

    NaN where it never does.

    >>> updates_to(0.5, np.array([0.2, 0.4, 0.6, 0.5]), 100)
    150.0
    """
    points = points_to(curve, target)
    return evaluate_every * points if np.isfinite(points) else float("nan")


def compare(of_start: Curves, evaluate_every: int) -> dict[str, dict[str, float]]:
    """A row for each method, MaxPO's first.

    Returns:
      By method `learning_rate`; `max_at_k`, the last pass@k; `gain` over the start;
      `updates_to_target`, the updates until the mean over seeds has half of MaxPO's gain; and
      `minus_maxpo`, the difference of the gains. Values have their standard errors over seeds
      beside them with `_sem`.
    """
    chosen = {method: best(by_rate) for method, by_rate in of_start.items()}
    maxpo = next(iter(chosen.values())).curve
    target = float((maxpo[0] + maxpo[-1]).mean() / 2)
    rows = {}
    for method, (rate, curve) in chosen.items():
        row: dict[str, float] = {"learning_rate": rate}
        values = {
            "max_at_k": curve[-1],
            "gain": curve[-1] - curve[0],
            "minus_maxpo": curve[-1] - maxpo[-1],
        }
        for name, by_seed in values.items():
            value, error = moments.mean(by_seed)
            row |= {name: float(value), f"{name}_sem": float(error)}
        row["updates_to_target"] = updates_to(target, curve.mean(axis=1), evaluate_every)
        rows[method] = row
    return rows
