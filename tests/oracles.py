"""Independent ways to say what an advantage is. None of them imports or resembles the kernel."""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np


def subset_mean(rewards: Sequence[float], k: int, value: Callable = max) -> float:
    """Mean of `value` over all k-subsets; the best of no samples counts as 0."""
    if k == 0:
        return 0.0
    return float(np.mean([value(s) for s in itertools.combinations(rewards, k)]))


def without(rewards: Sequence[float], *left_out: int) -> list[float]:
    return [r for i, r in enumerate(rewards) if i not in left_out]


def include_one(rewards: Sequence[float], k: int, value: Callable = max) -> np.ndarray:
    """q_i: mean over the k-subsets that contain i."""
    return np.array(
        [
            np.mean(
                [value([r, *rest]) for rest in itertools.combinations(without(rewards, i), k - 1)]
            )
            for i, r in enumerate(rewards)
        ]
    )


def leave_one_out(rewards: Sequence[float], k: int, value: Callable = max) -> np.ndarray:
    """v_k^(-i): mean over the k-subsets of the others."""
    return np.array([subset_mean(without(rewards, i), k, value) for i in range(len(rewards))])


def leave_two_out(rewards: Sequence[float], k: int) -> np.ndarray:
    """B_i exactly as it is defined, over all pairs (i, j) and all subsets of the rest."""

    def improvement(j: int, rest: list[float]) -> float:
        if k == 1:
            return rewards[j]  # On the best of no samples, which counts as 0.
        return float(
            np.mean([max(rewards[j] - max(t), 0.0) for t in itertools.combinations(rest, k - 1)])
        )

    n = len(rewards)
    return np.array(
        [
            np.mean([improvement(j, without(rewards, i, j)) for j in range(n) if j != i])
            for i in range(n)
        ]
    )


def improvement(rewards: Sequence[float], k: int) -> np.ndarray:
    """EI_i, by enumeration of what sample i may have to improve on."""
    if k == 1:
        return np.asarray(rewards, float)
    return np.array(
        [
            np.mean(
                [max(r - max(t), 0.0) for t in itertools.combinations(without(rewards, i), k - 1)]
            )
            for i, r in enumerate(rewards)
        ]
    )


def _over(numerator: np.ndarray, denominator: float) -> np.ndarray:
    return numerator / denominator if denominator != 0 else np.zeros_like(numerator)


def _pass_at_k_training(r: np.ndarray, k: int) -> np.ndarray:
    v = subset_mean(r, k)
    return _over(include_one(r, k) - v, np.sqrt(max(v * (1 - v), 0.0)))


def by_threshold(rewards: np.ndarray, advantage: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The advantage of the 0/1 rewards "better than t", integrated over all thresholds t."""
    levels = np.unique(rewards)
    total = np.zeros(len(rewards))
    for low, high in itertools.pairwise(levels):
        total += (high - low) * advantage((rewards > low).astype(float))
    return total


def _reweighted_rloo(successes: np.ndarray, k: int) -> np.ndarray:
    """k times the odds that k - 1 of the others all fail, times what RLOO gives."""
    others = [without(successes, i) for i in range(len(successes))]
    odds = [np.mean([not any(t) for t in itertools.combinations(o, k - 1)]) for o in others]
    return k * np.array(odds) * (successes - np.array([np.mean(o) for o in others]))


def off_policy(
    rewards: Sequence[float], ratios: Sequence[float], k: int, weight: Callable = math.prod
) -> np.ndarray:
    """k times the improvement of i on (k - 1)-subsets of the others, weighted by their ratios."""

    def improvement(i: int) -> float:
        others = [j for j in range(len(rewards)) if j != i]
        subsets = itertools.combinations(others, k - 1)
        return float(
            np.mean(
                [
                    weight([ratios[j] for j in t])
                    * max(rewards[i] - max(rewards[j] for j in t), 0.0)
                    for t in subsets
                ]
            )
        )

    if k == 1:
        return np.asarray(rewards, float)
    return k * np.array([improvement(i) for i in range(len(rewards))])


def off_policy_maxpo(rewards: Sequence[float], ratios: Sequence[float], k: int) -> np.ndarray:
    first_order = off_policy(rewards, ratios, k, lambda t: 1 + sum(ratio - 1 for ratio in t))
    return first_order - k * leave_two_out(rewards, k)


BLEND = 0.3  # The weight of `blended` where a test says no other.
RATIO = 1.25  # The ratio of all samples in `off_policy_maxpo`, likewise.

# Name -> advantage by enumeration; for max@k, with the smallest N - k that has one.
MEAN_ESTIMATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reinforce": lambda r: r,
    "rloo": lambda r: r - np.array([np.mean(without(r, i)) for i in range(len(r))]),
    "dr_grpo": lambda r: r - r.mean(),
    "grpo": lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-6),
    "standardize": lambda r: r / (r.std(ddof=1) + 1e-6),
    "max_rl": lambda r: _over(r - r.mean(), max(r.mean(), 0)),
    "tail_rl": lambda r: by_threshold(r, lambda b: b / b.mean() - 1),
}
MAX_ESTIMATORS: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], int]] = {
    "pass_at_k_training": (_pass_at_k_training, 0),
    "pkpo": (lambda r, k: k * include_one(r, k), 0),
    "pkpo_loo": (
        lambda r, k: k * include_one(r, k) - k * len(r) / (len(r) - 1) * leave_one_out(r, k),
        1,
    ),
    "pkpo_loo_minus_one": (lambda r, k: k * improvement(r, k), 0),
    "leave_two_out_baseline": (lambda r, k: k * leave_two_out(r, k), 1),
    "maxpo": (lambda r, k: k * (improvement(r, k) - leave_two_out(r, k)), 1),
    "reweighted_rloo": (lambda r, k: by_threshold(r, lambda b: _reweighted_rloo(b, k)), 0),
    "off_policy_maxpo": (lambda r, k: off_policy_maxpo(r, [RATIO] * len(r), k), 1),
    "canonical": (lambda r, k: k * (include_one(r, k) - subset_mean(r, k)), 0),
    "blended": (lambda r, k: k * (improvement(r, k) - BLEND * leave_two_out(r, k)), 1),
}


def l_statistic(rewards: Sequence[float], alpha: Sequence[float]) -> np.ndarray:
    k = len(alpha)

    def value(subset: Sequence[float]) -> float:
        return float(np.dot(alpha, np.sort(subset)))

    return k * (include_one(rewards, k, value) - leave_one_out(rewards, k, value))


def exact_maxpo(rewards: Sequence[Fraction], k: int) -> list[Fraction]:
    """k (q_i - v_k^(-i)) in exact arithmetic, by counting which sample is the best of how many.

    Sort ascending. Sample j is the best of C(j, k-1) k-subsets; of C(j-1, k-2) of those that also
    contain a given lower sample, and of C(j-1, k-1) of those that avoid it.
    """
    n = len(rewards)
    order = sorted(range(n), key=lambda i: rewards[i])
    scale = math.lcm(*(r.denominator for r in rewards))
    r = [int(rewards[i] * scale) for i in order]
    with_lower = [0] * (n + 1)  # Suffix sums over j.
    without_lower = [0] * (n + 1)
    for j in range(n - 1, 0, -1):
        pairs = math.comb(j - 1, k - 2) if k >= 2 else 0
        with_lower[j] = with_lower[j + 1] + r[j] * pairs
        without_lower[j] = without_lower[j + 1] + r[j] * math.comb(j - 1, k - 1)
    result = [Fraction(0)] * n
    below = 0
    for i in range(n):
        q = Fraction(r[i] * math.comb(i, k - 1) + with_lower[i + 1], math.comb(n - 1, k - 1))
        v = Fraction(below + without_lower[i + 1], math.comb(n - 1, k))
        result[order[i]] = k * (q - v) / scale
        below += r[i] * math.comb(i, k - 1)
    return result
