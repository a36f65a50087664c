"""Means and ratios of independent samples, with their standard errors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Estimate", "mean", "ratio"]


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


def mean(samples: ArrayLike) -> Estimate:
    """Mean of independent samples `[C]`."""
    samples = np.asarray(samples, np.float64)
    return Estimate(samples.mean(), samples.std(ddof=1) / len(samples) ** 0.5)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Ratio of the means of paired samples `[C]`, its error by the delta method.

    NaN where the denominator is 0.
    """
    top, bottom = mean(numerators), mean(denominators)
    if bottom.value == 0:
        return Estimate(np.nan, np.nan)
    value = top.value / bottom.value
    residuals = np.asarray(numerators, np.float64) - value * np.asarray(denominators, np.float64)
    return Estimate(value, mean(residuals).error / abs(bottom.value))
