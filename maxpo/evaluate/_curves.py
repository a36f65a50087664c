"""Means over problems and seeds, their differences, and their standard errors."""

from typing import NamedTuple

import numpy as np

__all__ = ["Curve", "curve", "difference"]

NOISE = 1e-13
"""Rounding of values, as a fraction of the largest."""


class Curve(NamedTuple):
    """A value for every k.

    Attributes:
      k: `[K]`.
      value: `[K]`, means over problems and seeds; NaN where there is no problem.
      error: `[K]`, their standard errors; NaN where there is one problem.
      problems: `[K]`, how many problems they are means over.
      left_out: `[K]`, how many problems are left out, because under some seed they have fewer than
        k samples, or for max@k no score.
    """

    k: np.ndarray
    value: np.ndarray
    error: np.ndarray
    problems: np.ndarray
    left_out: np.ndarray


def curve(ks: np.ndarray, values: np.ndarray) -> Curve:
    """The curve of a method.

    Problems and seeds both are random: with x the values of P problems under S seeds,

        Var = Var_p(mean_s x) / P + (Var_s(mean_p x) / S - Var(residuals) / (S P))^+

    where the residuals are what neither a seed nor a problem explains. With one seed the second
    term is unknown, and the error only that of the problems.

    Args:
      ks: `[K]`.
      values: `[S, P, K]`, NaN where a problem has no value.
    """
    return _of_columns(ks, [_column(values[..., i]) for i in range(len(ks))], values.shape[1])


def difference(ks: np.ndarray, values: np.ndarray, minus: np.ndarray) -> Curve:
    """The curve of the differences of two methods on their common problems.

    What makes a problem hard for both cancels, so the errors are smaller than those of two separate
    sets of problems. Seeds of one method are independent of those of the other.

    Args:
      ks: `[K]`.
      values: `[S, P, K]`, NaN where a problem has no value.
      minus: `[S', P, K]`, of the method that is subtracted, on the same problems.
    """
    columns = [_column(values[..., i], minus[..., i]) for i in range(len(ks))]
    return _of_columns(ks, columns, values.shape[1])


def _of_columns(ks: np.ndarray, columns: list[tuple[float, float, int]], problems: int) -> Curve:
    value, error, counts = map(np.array, zip(*columns, strict=True))
    return Curve(ks, value, error, counts, problems - counts)


def _column(values: np.ndarray, minus: np.ndarray | None = None) -> tuple[float, float, int]:
    """The value of one k, its error, and its number of problems."""
    sides = [values] if minus is None else [values, minus]
    valid = np.all([np.isfinite(side).all(axis=0) for side in sides], axis=0)
    sides = [side[:, valid] for side in sides]
    by_problem = sides[0].mean(axis=0) - (0 if minus is None else sides[1].mean(axis=0))
    P = len(by_problem)
    if not P:
        return np.nan, np.nan, 0
    noise = NOISE * max(float(np.abs(side).max()) for side in sides)
    value = _without(noise, float(by_problem.mean()))
    if P == 1:
        return value, np.nan, 1
    variance = by_problem.var(ddof=1) / P + sum(map(_of_seeds, sides))
    return value, _without(noise, float(np.sqrt(variance))), P


def _without(noise: float, value: float) -> float:
    """0 for what equal numbers differ by after rounding."""
    return value if abs(value) > noise else 0.0


def _of_seeds(values: np.ndarray) -> float:
    """What seeds add to the variance of the mean of values `[S, P]`."""
    S, P = values.shape
    if S == 1:
        return 0.0
    by_problem, by_seed = values.mean(axis=0), values.mean(axis=1)
    residuals = values - by_problem - by_seed[:, None] + values.mean()
    unexplained = np.sum(residuals**2) / ((S - 1) * (P - 1) * S * P)
    return max(float(by_seed.var(ddof=1) / S - unexplained), 0.0)
