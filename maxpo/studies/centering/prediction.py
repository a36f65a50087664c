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
estimator. What noise decides is how far it goes where it should: with s_j^2 = mu_j^2 +
sigma_j^2 / G, to which v_j converges, samples go with 1 / (sum_j mu_j E[u_j])^2,

    E[u_j] = mu_j / s_j - (w / 2) Cov(g_j, g_j^2) / s_j^3 ,   w = (1 - b1) (1 - b2) / (1 - b1 b2) .

The first term: noise in v shortens all steps in that coordinate, so a baseline that removes noise
lengthens them. The second, of first order in the fluctuations of v: a large gradient is divided by
a second moment that it has just made larger itself, which costs gradients that are rarely large and
mostly in the direction of their mean; w is the share of a gradient in its own denominator.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from maxpo.studies.centering.moments import Moments
from maxpo.studies.variance.moments import Estimate, ratio

__all__ = ["B1", "Fit", "adam_drift", "fit", "predicted_ratio", "variance_ratio"]

B1 = 0.9
"""Adam's decay of first moments."""


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


def predicted_ratio(
    moments: Moments, *, groups_per_update: int, optimizer: str, b2: float
) -> Estimate:
    """Samples that the second estimator needs over those of the first, by the module's formulas.

    Args:
      moments: Of two estimators, by policy and seed.
      groups_per_update: G.
      optimizer: adam, or sgd with or without momentum.
      b2: Of Adam.
    """
    if optimizer == "adam":
        mean = jnp.mean(moments.means, axis=0)
        # E[u] from one sample of contexts times mu of the other would be unbiased; averaged, the
        # square of the error of mu enters both sides of the ratio alike.
        reference, other = (
            _over_training(_sums(mean * adam_drift(mean, second, third, groups_per_update, b2=b2)))
            for second, third in zip(moments.second, moments.third, strict=True)
        )
        slower = ratio(reference, other)
        return Estimate(slower.value**2, 2 * slower.value * slower.error)
    signal = _signal(moments)
    reference, other = (
        signal + (_over_training(_sums(second)) - signal) / groups_per_update
        for second in moments.second
    )
    return ratio(other, reference)


def adam_drift(
    mean: jax.Array, second: jax.Array, third: jax.Array, groups_per_update: int, *, b2: float
) -> jax.Array:
    """E[u_j] of the module's docstring, 0 for coordinates that never had a gradient.

    Args:
      mean: mu, of any shape.
      second: E[g^2] of one group.
      third: E[g^3] of one group.
      groups_per_update: G.
      b2: Of Adam.
    """
    n = groups_per_update
    variance = jnp.maximum(second - mean**2, 0) / n
    central = (third - 3 * mean * second + 2 * mean**3) / n**2
    square = mean**2 + variance
    felt = second > 0
    scale = jnp.sqrt(jnp.where(felt, square, 1))
    # Cov(g, g^2) = E[g^3] - mu E[g^2] = central + 2 mu variance.
    covariance = central + 2 * mean * variance
    own = (1 - B1) * (1 - b2) / (1 - B1 * b2)
    return jnp.where(felt, mean / scale - own / 2 * covariance / scale**3, 0)


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
    correlation = float(scipy.stats.spearmanr(x, y).statistic)
    return Fit(correlation, slope, error)
