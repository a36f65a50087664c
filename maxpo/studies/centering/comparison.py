"""What training came to: each estimator at its own best step size, and samples to a target.

Step sizes are chosen on the first half of the seeds and reported on the second: choosing and
reporting on the same ones would flatter whoever is noisiest.
"""

from collections.abc import Callable

import numpy as np

from maxpo.studies.variance.moments import Estimate

__all__ = [
    "best_step",
    "fastest_step",
    "halves",
    "jackknife",
    "points_to",
    "samples_to",
    "target_of",
]


def halves(seeds: int) -> tuple[slice, slice]:
    """The seeds that step sizes are chosen on, and those that are reported."""
    return slice(0, seeds // 2), slice(seeds // 2, seeds)


def best_step(finals: np.ndarray) -> int:
    """Which step size ends highest, given final objectives `[R, S]`; NaN is lowest."""
    return int(np.argmax(np.nan_to_num(finals.mean(axis=1), nan=-np.inf)))


def points_to(curve: np.ndarray, target: float) -> float:
    """The place at which a curve first reaches a target, on straight lines between its points.

    Args:
      curve: `[P + 1]`.
      target: What it has to reach.

    Returns:
      From 0 for its first point to P for its last; infinite if it never gets there.
    """
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return np.inf
    after = reached[0]
    if after == 0:
        return 0.0
    low, high = curve[after - 1], curve[after]
    return float(after - 1 + (target - low) / (high - low))


def samples_to(curve: np.ndarray, target: float, samples: int) -> float:
    """Samples until a curve first reaches a target, see `points_to`.

    Args:
      curve: `[P + 1]`, the objective at the start and after each of P equal parts of training.
      target: What it has to reach.
      samples: Of all of training.

    Returns:
      The number of samples, infinite if the curve never gets there.
    """
    return points_to(curve, target) / (len(curve) - 1) * samples


def fastest_step(curves: np.ndarray, target: float) -> int:
    """Which step size reaches a target first, given curves `[P + 1, R, S]`.

    Among those that never do, the one that ends highest.
    """
    means = curves.mean(axis=2).T
    needed = [samples_to(curve, target, 1) for curve in means]
    if np.isinf(needed).all():
        return best_step(curves[-1])
    return int(np.argmin(needed))


def target_of(first: np.ndarray, second: np.ndarray, share: float) -> float:
    """A share of the way from the start to the lower one of two ends.

    Args:
      first: Curves `[P + 1, S]` of one estimator.
      second: Those of another with the same start.
      share: Between 0 and 1.
    """
    start = first[0].mean()
    return float(start + share * (min(first[-1].mean(), second[-1].mean()) - start))


def jackknife(statistic: Callable[[np.ndarray], float], seeds: int) -> Estimate:
    """A statistic of all seeds and its standard error by leaving out one after the other.

    Args:
      statistic: Takes the numbers of the seeds to use.
      seeds: How many there are.
    """
    numbers = np.arange(seeds)
    value = statistic(numbers)
    without = np.array([statistic(np.delete(numbers, one)) for one in numbers])
    error = np.sqrt((seeds - 1) * np.mean((without - without.mean()) ** 2))
    return Estimate(float(value), float(error))
