"""Mean and covariance of policy gradients on bandits with two rewards, in closed form.

Some arms are right and pay 1, the others pay 0; the policy is uniform within either kind. All that
a group of N samples decides is then the number c ~ Binomial(N, success rate) of successes, and
given c, which of the right and which of the wrong arms were drawn, uniformly. The moments of
`maxpo.studies.variance.moments` follow by one sum over c, in float64 and without sampling.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike

__all__ = ["exact_moments"]


def exact_moments(
    advantages: Callable[[ArrayLike], ArrayLike],
    *,
    group_size: int,
    success_rate: float,
    right_arms: int,
    wrong_arms: int,
) -> tuple[float, float]:
    """Trace of the covariance and squared norm of the mean of one group's gradient.

    With c successes of advantage A_1 and f = N - c failures of advantage A_0, R right arms of
    probability p_1 each and W wrong ones of p_0, S = (c A_1 + f A_0) / N,

        E[|g|^2 | c] = [c A_1^2 (1 + (c-1)/R) + f A_0^2 (1 + (f-1)/W)] / N^2
                       - 2 S (c A_1 p_1 + f A_0 p_0) / N  +  S^2 (R p_1^2 + W p_0^2)
        E[g_a | c]   = c A_1 / (N R) - S p_1  for a right arm a, and alike for a wrong one.

    Args:
      advantages: Rewards `[..., N]` to advantages `[..., N]`; equal rewards get equal ones.
      group_size: N.
      success_rate: Probability of a right arm, strictly between 0 and 1.
      right_arms: R >= 1. From some thousand on their number no longer matters: no two samples are
        then of the same arm.
      wrong_arms: W >= 1.

    Returns:
      The trace and the squared norm.

    >>> from maxpo import estimators
    >>> exact_moments(
    ...     estimators.reinforce, group_size=1, success_rate=0.5, right_arms=1, wrong_arms=1)
    (0.125, 0.125)
    """
    n, s, right, wrong = group_size, success_rate, right_arms, wrong_arms
    c = np.arange(n + 1)
    f = n - c
    with jax.enable_x64(True):
        # Row c has its successes in front; a column that no row of interest has is never used.
        table = np.asarray(advantages((np.arange(n) < c[:, None]).astype(np.float64)))
    a1, a0 = np.where(c > 0, table[:, 0], 0), np.where(f > 0, table[:, -1], 0)
    p1, p0 = s / right, (1 - s) / wrong
    odds = np.array([math.comb(n, x) * s**x * (1 - s) ** (n - x) for x in c])
    total = (c * a1 + f * a0) / n

    squared_norm = (
        (c * a1**2 * (1 + (c - 1) / right) + f * a0**2 * (1 + (f - 1) / wrong)) / n**2
        - 2 * total * (c * a1 * p1 + f * a0 * p0) / n
        + total**2 * (right * p1**2 + wrong * p0**2)
    )
    mean_right = odds @ (c * a1 / (n * right) - total * p1)
    mean_wrong = odds @ (f * a0 / (n * wrong) - total * p0)
    of_mean = float(right * mean_right**2 + wrong * mean_wrong**2)
    return float(odds @ squared_norm) - of_mean, of_mean
