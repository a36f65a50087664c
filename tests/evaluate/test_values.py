"""Values of problems against all subsets, in exact arithmetic."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from maxpo.evaluate._values import Samples, best_of_k, subset_odds, values_of_problems


def all_subsets(scores, k, success):
    """pass@k and max@k by enumeration; a None is a sample without a score."""
    subsets = list(combinations(scores, k))
    found = [[x for x in subset if x is not None] for subset in subsets]
    passes = sum(any(x >= success for x in subset) for subset in found)
    bests = [max(subset) for subset in found if subset]
    best = sum(map(Fraction, bests)) / len(bests) if bests else np.nan
    return float(Fraction(passes, len(subsets))), float(best)


GROUPS = {
    "binary": [0, 1, 0, 0, 1, 0],
    "graded, with ties": [0.25, -1.5, 3.0, 0.25, 0.5, -1.5],
    "all correct": [1, 1, 1],
    "none correct": [0.5, 0.25, 0.125, 0.5],
    "one sample": [0.75],
    "one without a score": [None, 0.5, 1.0, -2.0],
    "one with a score": [None, None, -0.5],
    "none with a score": [None, None],
}


@pytest.mark.parametrize("scores", GROUPS.values(), ids=GROUPS)
def test_every_k_is_the_mean_over_all_subsets(scores):
    n = len(scores)
    row = np.array([np.nan if x is None else x for x in scores])[None]
    found = best_of_k(row, np.arange(1, n + 1), success=1.0)
    for k in range(1, n + 1):
        passes, bests = all_subsets(scores, k, 1.0)
        assert found.passes[0, k - 1] == pytest.approx(passes, abs=1e-15)
        assert found.bests[0, k - 1] == pytest.approx(bests, rel=1e-14, nan_ok=True)


def test_other_numbers_may_decide_what_is_correct():
    scores, deciding = np.array([[0.25, 4.0, 1.0]]), np.array([[0.9, 0.0, np.nan]])
    found = best_of_k(scores, np.array([1, 3]), success=0.9, deciding=deciding)
    assert found.passes[0].tolist() == pytest.approx([1 / 3, 1])
    assert found.bests[0].tolist() == pytest.approx([5.25 / 3, 4])


def test_success_decides_what_is_correct():
    found = best_of_k(np.array([[-1.0, 0.0, 1.0]]), np.array([1]), success=0.0)
    assert found.passes.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", [1, 2, 100, 2048, 4000, 4096])
def test_large_groups_are_exact(k):
    n = 4096
    odds = subset_odds(n, np.array([k]))[:, 0]
    for below in (0, 1, k - 1, k, 2000, 4000, n - 1, n):
        exact = float(Fraction(comb(below, k), comb(n, k)))
        assert odds[below] == pytest.approx(exact, rel=1e-12, abs=1e-300)
    scores = np.random.default_rng(0).normal(size=n)
    ranked = sorted(map(Fraction, scores.tolist()))
    exact = sum(r * comb(m, k - 1) for m, r in enumerate(ranked)) / comb(n, k)
    found = best_of_k(scores[None], np.array([k]), success=1.0).bests.item()
    assert found == pytest.approx(float(exact), rel=1e-11, abs=1e-13)


def test_extremes_are_exactly_0_and_1():
    scores = np.array([[0.0] * 100, [1.0] * 100, [0.0] * 97 + [1.0] * 3])
    found = best_of_k(scores, np.array([1, 64, 98]), success=1.0).passes
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == [1, 1, 1]
    assert found[2, 2] == 1


def test_problems_may_have_any_number_of_samples_in_any_order():
    groups = [[0.0, 1.0, 0.5], [], [0.5], [1.0, 1.0, 0.0], [0.25, 0.75]]
    samples = [(p, x) for p, group in enumerate(groups) for x in group]
    np.random.default_rng(1).shuffle(samples)
    problem, score = map(np.array, zip(*samples, strict=True))
    ks = np.array([1, 2, 3, 4])
    found = values_of_problems(
        Samples(problem.astype(int), score, score), ks, count=len(groups), success=1.0
    )
    for p, group in enumerate(groups):
        for i, k in enumerate(ks.tolist()):
            values = found.passes[p, i], found.bests[p, i]
            expected = all_subsets(group, k, 1.0) if k <= len(group) else (np.nan, np.nan)
            assert values == pytest.approx(expected, nan_ok=True), (p, k)


def test_the_estimates_are_unbiased():
    # All groups of 4 samples that a policy can draw, each with its probability.
    values, odds = [0.0, 0.5, 2.0], [0.5, 0.3, 0.2]
    places = np.array(np.meshgrid(*[range(3)] * 4)).reshape(4, -1).T
    probability = np.prod(np.take(odds, places), axis=1)
    found = best_of_k(np.take(values, places), np.array([1, 2, 4]), success=2.0)
    below = np.cumsum(odds)
    for i, k in enumerate([1, 2, 4]):
        best = np.sum(values * np.diff(below**k, prepend=0.0))
        assert probability @ found.bests[:, i] == pytest.approx(best)
        assert probability @ found.passes[:, i] == pytest.approx(1 - below[1] ** k)
