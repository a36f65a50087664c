"""Unbiased pass@k and max@k of problems, from order statistics.

Of the k-subsets of n samples, C(m - 1, k - 1) have the m-th smallest as their maximum, so

    max@k = sum_m r_(m) C(m - 1, k - 1) / C(n, k)
    pass@k = 1 - C(n - c, k) / C(n, k)      with c correct samples

Both need nothing but the odds C(b, k) / C(n, k), since C(m - 1, k - 1) = C(m, k) k / m. They are
products of factors between 0 and 1, without a binomial that could overflow.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Samples",
    "Values",
    "best_of_k",
    "joined",
    "least_correct",
    "subset_odds",
    "values_of_problems",
]


class Samples(NamedTuple):
    """Samples of problems that are numbered from 0.

    Attributes:
      problem: `[M]`, the number of each sample's problem.
      score: `[M]`, NaN where a sample has none.
      deciding: `[M]`, what decides on whether it is correct; as a rule the score itself.
    """

    problem: np.ndarray
    score: np.ndarray
    deciding: np.ndarray


def joined(samples: Sequence[Samples]) -> Samples:
    """The samples of several files or parts as those of one."""
    if len(samples) == 1:
        return samples[0]
    return Samples(*map(np.concatenate, zip(*samples, strict=True)))


class Values(NamedTuple):
    """Values of every problem, for every k.

    Attributes:
      passes: `[P, K]`, pass@k; NaN where a problem has fewer than k samples.
      bests: `[P, K]`, max@k; NaN also where no sample has a score.
    """

    passes: np.ndarray
    bests: np.ndarray


def values_of_problems(samples: Samples, ks: np.ndarray, *, count: int, success: float) -> Values:
    """The values of problems with any numbers of samples.

    Args:
      samples: The samples.
      ks: `[K]`, each at least 1.
      count: P, the number of problems.
      success: The score from which a sample is correct.
    """
    found = Values(np.full((count, len(ks)), np.nan), np.full((count, len(ks)), np.nan))
    order = np.argsort(samples.problem, kind="stable")
    by_problem = samples.score[order]
    deciding = None if samples.deciding is samples.score else samples.deciding[order]
    sizes = np.bincount(samples.problem, minlength=count)
    starts = np.cumsum(sizes) - sizes
    for n in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == n)
        known = np.flatnonzero(ks <= n)
        members = starts[rows][:, None] + np.arange(n)
        places = np.ix_(rows, known)
        found.passes[places], found.bests[places] = best_of_k(
            by_problem[members],
            ks[known],
            success=success,
            deciding=None if deciding is None else deciding[members],
        )
    return found


def least_correct(success: float) -> float:
    """The least score of a correct sample.

    A score that was computed with 32 bits and written with 64 may be below the number that it is
    meant to reach, as 0.8999999761581421 is below 0.9.

    Args:
      success: The score that is meant.

    >>> least_correct(0.9), least_correct(1.0), least_correct(1e-60)
    (0.8999999761581421, 1.0, 1e-60)
    """
    with np.errstate(over="ignore"):
        rounded = float(np.float32(success))
    return min(success, rounded) if math.isclose(success, rounded, rel_tol=1e-7) else success


def best_of_k(
    scores: np.ndarray, ks: np.ndarray, *, success: float, deciding: np.ndarray | None = None
) -> Values:
    """Unbiased pass@k and max@k of problems with the same number of samples.

    A sample without a score is one of the k that are drawn. It is never correct and never the best:
    max@k is the mean maximum of those k-subsets that hold a scored sample.

    Args:
      scores: `[P, n]`, NaN where a sample has no score.
      ks: `[K]`, each at least 1 and at most n.
      success: The score from which a sample is correct.
      deciding: `[P, n]`, what has to be as high as that; the scores if None.

    >>> values = best_of_k(np.array([[0.0, 1.0, 0.5]]), np.array([1, 2, 3]), success=1.0)
    >>> values.passes.round(3).tolist(), values.bests.round(3).tolist()
    ([[0.333, 0.667, 1.0]], [[0.5, 0.833, 1.0]])
    """
    n = scores.shape[-1]
    odds = subset_odds(n, ks)
    correct = np.sum((scores if deciding is None else deciding) >= success, axis=-1)
    scored = ~np.isnan(scores)
    # NumPy sorts NaN to the end, but no scored sample is below one without a score.
    ascending = np.sort(np.where(scored, scores, -np.inf), axis=-1)
    ascending[np.isneginf(ascending)] = 0
    weights = odds[1:] * ks / np.arange(1, n + 1)[:, None]
    any_scored = 1 - odds[n - scored.sum(axis=-1)]
    any_scored[any_scored == 0] = np.nan
    return Values(1 - odds[n - correct], ascending @ weights / any_scored)


def subset_odds(n: int, ks: np.ndarray) -> np.ndarray:
    """The odds that k of n samples, drawn without replacement, are all among b given ones.

        C(b, k) / C(n, k) = prod_{j = b+1 .. n} max(j - k, 0) / j

    Args:
      n: The number of samples.
      ks: `[K]`, each at least 1 and at most n.

    Returns:
      `[n + 1, K]`, for b = 0..n.

    >>> subset_odds(4, np.array([2])).ravel().round(3).tolist()
    [0.0, 0.0, 0.167, 0.5, 1.0]
    """
    j = np.arange(n, 0, -1, dtype=np.float64)[:, None]
    falling = np.cumprod(np.maximum(j - ks, 0) / j, axis=0)
    return np.concatenate([np.ones((1, len(ks))), falling])[::-1]
