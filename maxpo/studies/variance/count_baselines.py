"""Baselines for 0/1 rewards where no two samples share an action: variances by finite sums.

With 0/1 rewards and c successes among the *other* N - 1 samples,

    k EI_i = k f(c) r_i ,   f(c) = C(N - 1 - c, k - 1) / C(N - 1, k - 1) ,

so an unbiased estimator that subtracts a function of the other samples may be written
k f(c) (r_i - b(c)): a baseline is a table b(0..N-1) of guesses at the success rate. Scores of
samples that share no action are orthogonal. In units of E|score|^2, with p the success rate and
c ~ Binomial(N - 1, p), the trace of the covariance of the gradient is then

    V_b(p) = (k^2 / N) E[ f(c)^2 ((b(c) - p)^2 + p (1 - p)) ] ,

and the Leave-Two-Out baseline with weight w is b(c) = w c / (N - k). `docs/theory.md` has the
proofs, and what follows for rules that want to be good for every p.
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["best_weight", "certificate", "leave_two_out", "variance"]


def variance(
    baseline: np.ndarray | float, *, group_size: int, k: int, success_rate: float
) -> float:
    """V_b(p).

    Args:
      baseline: `[N]`, b(0)..b(N-1), or one number for all counts. Entries with f(c) = 0 are unused.
      group_size: N.
      k: 1 <= k <= N - 1.
      success_rate: p.

    >>> variance(0.0, group_size=4, k=1, success_rate=0.5)  # REINFORCE: p / N
    0.125
    """
    odds, p = _odds(group_size, k, success_rate), success_rate
    return float(k**2 / group_size * np.sum(odds * ((baseline - p) ** 2 + p * (1 - p))))


def leave_two_out(group_size: int, k: int) -> np.ndarray:
    """b(c) = c / (N - k) for c = 0..N-1: MaxPO's baseline, that of weight 1."""
    return np.arange(group_size) / (group_size - k)


def best_weight(*, group_size: int, k: int, success_rate: float) -> float:
    """The weight w* of least variance: p E[f^2 c / (N - k)] / E[f^2 (c / (N - k))^2].

    It is (N - 1) p / ((N - 1) p + 1 - p) at k = 1, and p at k = N - 1.

    >>> round(best_weight(group_size=8, k=7, success_rate=0.3), 12)
    0.3
    """
    odds, guess = _odds(group_size, k, success_rate), leave_two_out(group_size, k)
    return float(success_rate * (odds @ guess) / (odds @ guess**2))


def certificate(
    group_size: int, k: int, success_rates: Sequence[float], *, rounds: int = 4000
) -> tuple[float, float]:
    """How far above the better one of weights 0 and 1 every single baseline must be somewhere.

    For any prior q over success rates, with m_p = min(V(0; p), V(1; p)),

        min_b max_p V_b(p) / m_p  >=  min_b sum_p q_p V_b(p) / m_p ,

    and the minimum on the right is at b(c) = the mean of p under q_p Binomial(c; N - 1, p) / m_p:
    f cancels. The prior is improved by multiplicative weights.

    Args:
      group_size: N.
      k: 1 <= k <= N - 1.
      success_rates: The p among which the worst one is looked for.
      rounds: Rounds of improving the prior. Every prior proves a bound, so more only tighten it.

    Returns:
      The bound, and the worst ratio of a baseline that nearly attains it. No baseline has a worst
      ratio below the first; where that is above 1, none is never worse than weights 0 and 1.
    """
    rates = np.array(success_rates)
    guess = leave_two_out(group_size, k)
    better = np.array(
        [
            min(variance(b, group_size=group_size, k=k, success_rate=p) for b in (0.0, guess))
            for p in success_rates
        ]
    )
    odds = np.array([_odds(group_size, k, p) for p in success_rates])
    scale = k**2 / group_size / better[:, None] * odds  # [p, c]
    noise = (rates * (1 - rates))[:, None]

    def ratios(prior: np.ndarray) -> np.ndarray:
        """V_b(p) / m_p of the best baseline for this prior."""
        joint = prior @ scale
        mean = (prior * rates) @ scale / np.where(joint > 0, joint, 1)
        return np.sum(scale * ((mean - rates[:, None]) ** 2 + noise), axis=1)

    prior = np.full(len(rates), 1 / len(rates))
    found, step = ratios(prior), 1.0
    for _ in range(rounds):
        # The gradient of the bound are the ratios themselves. It is concave in the prior, so steps
        # that never lower it find its maximum.
        trial = prior * np.exp(step * (found - found.max()))
        trial /= trial.sum()
        there = ratios(trial)
        if trial @ there >= prior @ found:
            prior, found, step = trial, there, min(1.5 * step, 1e6)
        else:
            step /= 4
    return float(prior @ found), float(found.max())


def _odds(group_size: int, k: int, success_rate: float) -> np.ndarray:
    """f(c)^2 times the probability of c successes among N - 1, for c = 0..N-1."""
    others, p = group_size - 1, success_rate
    return np.array(
        [
            math.comb(others, c)
            * p**c
            * (1 - p) ** (others - c)
            * (math.comb(others - c, k - 1) / math.comb(others, k - 1)) ** 2
            for c in range(group_size)
        ]
    )
