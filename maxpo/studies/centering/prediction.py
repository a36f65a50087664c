"""What less variance should do to learning, and how well measurements follow it.

One update with the direction u moves the objective, whose Hessian we take for one number -h in all
directions, by eta mu.E[u] - (h/2) eta^2 E|u|^2. At the best eta this is

    (mu . E[u])^2 / (2 h E|u|^2) ,

and the inverse, relative to another estimator's, is how many samples it needs relative to it.

SGD takes u = g, averaged over G groups: mu.E[u] = |mu|^2 is the same for all unbiased estimators,
and samples go with

    E|u|^2 = |mu|^2 + tr(Sigma) / G .

With noise alone that is the ratio of variances; with many groups in each update it goes to 1.

Adam takes u_j = m_j / sqrt(v_j), whose square is about 1 in every coordinate whatever the
estimator. What noise decides is how far it goes where it should: samples go with
1 / (sum_j mu_j E[u_j])^2. With s_j^2 = mu_j^2 + sigma_j^2 / G, about which v_j fluctuates,

    E[u_j] = E[ g_j / sqrt(w g_j^2 + (1 - w) s_j^2) ] ,   w = (1 - b1) (1 - b2) / (1 - b1 b2) .

w is the share that a gradient has in its own denominator, the other gradients in it are taken for
their mean. In the first order of w this is mu_j / s_j - (w / 2) Cov(g_j, g_j^2) / s_j^3. The first
term: noise in v shortens all steps in that coordinate, so a baseline that removes noise lengthens
them. The second: a large gradient is divided by a second moment that it has just made larger
itself, which costs gradients that are rarely large, and then in the direction of their mean. Groups
in an update and a b2 near 1 make it small.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxpo.studies.centering.moments import Moments
from maxpo.studies.centering.training import B1
from maxpo.studies.variance.moments import Estimate, ratio

__all__ = [
    "Fit",
    "fit",
    "is_measured",
    "own_share",
    "predicted_ratio",
    "predicted_ratio_of_adam",
    "rank_correlation",
    "squares_of",
    "variance_ratio",
]


def _sums(array: jax.Array) -> np.ndarray:
    return np.asarray(jnp.sum(array, axis=(-2, -1)), np.float64)


def _over_training(by_policy: np.ndarray) -> np.ndarray:
    """`[T, S]` to a sum for each seed."""
    return by_policy.sum(axis=0)


def _signal(moments: Moments) -> np.ndarray:
    return _over_training(_sums(moments.means[0] * moments.means[1]))


def variance_ratio(moments: Moments) -> Estimate:
    """tr(Sigma) of one group under the second estimator over that under the first.

    Args:
      moments: Of two estimators, by policy and seed.

    Returns:
      The ratio of sums over policies, its error over seeds.
    """
    reference, other = (_over_training(_sums(second)) for second in moments.second)
    signal = _signal(moments)
    return ratio(other - signal, reference - signal)


def predicted_ratio(moments: Moments, groups_per_update: int) -> Estimate:
    """Samples that the second estimator needs over those of the first, by SGD.

    Args:
      moments: Of two estimators, by policy and seed.
      groups_per_update: G.
    """
    signal = _signal(moments)
    reference, other = (
        signal + (_over_training(_sums(second)) - signal) / groups_per_update
        for second in moments.second
    )
    return ratio(other, reference)


def squares_of(moments: Moments, groups_per_update: int) -> jax.Array:
    """s^2 of an update of G groups, `[E, T, S, A, D]`, 0 where there never was a gradient."""
    signal = moments.means[0] * moments.means[1]
    of_update = signal + (moments.second - signal) / groups_per_update
    return jnp.where(moments.second > 0, jnp.maximum(of_update, 0), 0)


def own_share(b2: float) -> float:
    """W of the module's docstring.

    >>> print(f"{own_share(0.99):.4f}")
    0.0092
    """
    return (1 - B1) * (1 - b2) / (1 - B1 * b2)


def predicted_ratio_of_adam(moments: Moments, directions: jax.Array) -> Estimate:
    """Samples that the second estimator needs over those of the first, by Adam.

    Args:
      moments: Of two estimators, by policy and seed.
      directions: `[2, T, S, A, D]`, E[u] under each.
    """
    mean = jnp.mean(moments.means, axis=0)
    reference, other = (_over_training(_sums(mean * each)) for each in directions)
    slower = ratio(reference, other)
    return Estimate(slower.value**2, 2 * slower.value * slower.error)


def is_measured(row: Mapping[str, Any]) -> bool:
    """Whether both of the pair reach the target in a cell, with every seed left out, too."""
    figures = [
        row[name]
        for label in ("predicted_ratio", "samples_ratio")
        for name in (label, f"{label}_sem")
    ]
    return all(np.isfinite(value) and value > 0 for value in figures)


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation; NaN of fewer than three points, or where all are the same."""
    if len(x) < 3:
        return np.nan
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(_ranks(np.asarray(x)), _ranks(np.asarray(y)))[0, 1])


def _ranks(x: np.ndarray) -> np.ndarray:
    """From 0; equal numbers share the mean of theirs."""
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    means: np.ndarray = np.cumsum(counts) - (counts + 1) / 2
    return means[places]


class Fit(NamedTuple):
    """How measured ratios follow predicted ones, both as logarithms.

    Attributes:
      rank_correlation: Spearman's.
      slope: Of the line through (1, 1), where no difference is predicted.
      slope_sem: Its standard error, scaled up where points scatter by more than their own.
    """

    rank_correlation: float
    slope: float
    slope_sem: float


def fit(predicted: Sequence[Estimate], measured: Sequence[Estimate]) -> Fit:
    """Fits log(measured) = slope log(predicted), with errors in both.

    A point weighs 1 / (error_y^2 + slope^2 error_x^2), found by iteration. Where points scatter
    about the line by more than that, the error of the slope is scaled by as much.
    """
    x, y = (np.log([estimate.value for estimate in points]) for points in (predicted, measured))
    x_error, y_error = (
        np.array([estimate.error / estimate.value for estimate in points])
        for points in (predicted, measured)
    )
    slope = 1.0
    for _ in range(50):
        weights = 1 / (y_error**2 + (slope * x_error) ** 2)
        slope = float(np.sum(weights * x * y) / np.sum(weights * x**2))
    scatter = np.sum(weights * (y - slope * x) ** 2) / max(len(x) - 1, 1)
    error = float(np.sqrt(max(scatter, 1) / np.sum(weights * x**2)))
    return Fit(rank_correlation(x, y), slope, error)
