"""The best of k on held-out problems, and how sure of it one can be."""

import itertools

import numpy as np
import pytest

from maxpo.lm.training import evaluation
from maxpo.lm.training.grading import as_lowest


@pytest.mark.parametrize("binary", [True, False])
def test_best_of_k_is_the_mean_over_all_subsets(binary):
    rng = np.random.default_rng(0)
    rewards = rng.random((2, 3, 6)).astype(np.float32)
    if binary:
        rewards = (rewards < 0.3).astype(np.float32)
    found = evaluation.best_of_k(rewards, binary=binary)
    for number, k in enumerate((1, 2, 4, 6)):
        subsets = list(itertools.combinations(range(6), k))
        expected = np.mean([rewards[..., list(subset)].max(axis=-1) for subset in subsets], axis=0)
        np.testing.assert_allclose(found[..., number], expected, rtol=1e-5, atol=1e-6)


def test_a_failure_counts_as_the_lowest_of_its_group_but_at_most_0():
    nan = np.nan
    scores = np.array(
        [
            [-0.1, -0.2, nan, -0.4],  # below 0: the lowest of the group
            [0.5, nan, 0.7, 0.9],  # above: 0
            [0.5, nan, -0.25, nan],
            [nan, nan, nan, nan],  # no score at all: the lowest of all groups
            [0.25, -3.0, 0.5, 0.0],  # nothing failed
        ],
        np.float32,
    )
    found = as_lowest(scores)
    expected = [
        [-0.1, -0.2, -0.4, -0.4],
        [0.5, 0.0, 0.7, 0.9],
        [0.5, -0.25, -0.25, -0.25],
        [-3.0, -3.0, -3.0, -3.0],
        [0.25, -3.0, 0.5, 0.0],
    ]
    np.testing.assert_array_equal(found, np.float32(expected))
    assert found.dtype == np.float32
    assert as_lowest(scores[3]).tolist() == [0, 0, 0, 0]


def test_errors_are_the_spread_of_repeated_studies():
    # Problems and seeds are both random, and add to their interaction, which is uniform noise.
    rng = np.random.default_rng(1)
    studies, S, P, n = 400, 3, 40, 4
    means, errors = [], []
    for _ in range(studies):
        problems, seeds = rng.normal(0, 1.0, (1, P, 1)), rng.normal(0, 0.3, (S, 1, 1))
        rewards = problems + seeds + rng.uniform(-1, 1, (S, P, n))
        curve = evaluation.curve(rewards, binary=False)
        means.append(curve.value)
        errors.append(curve.error)
    spread = np.std(means, axis=0, ddof=1)
    # A standard deviation of 400 studies has a relative error of 1 / sqrt(2 * 400) = 3.5%.
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(rms / spread, 1, atol=0.2)


def test_with_one_seed_the_error_is_that_of_the_problems():
    rewards = np.random.default_rng(2).random((1, 5, 4)).astype(np.float32)
    curve = evaluation.curve(rewards, binary=False)
    by_problem = rewards[0].mean(axis=-1)
    np.testing.assert_allclose(curve.value[0], by_problem.mean(), rtol=1e-6)
    np.testing.assert_allclose(curve.error[0], by_problem.std(ddof=1) / 5**0.5, rtol=1e-5)
    assert np.isnan(evaluation.curve(rewards[:, :1], binary=False).error).all()


def test_what_is_hard_for_both_cancels_in_a_difference():
    rng = np.random.default_rng(3)
    before = np.repeat(rng.random((50, 1)), 4, axis=1)
    after = (before + 0.125)[None]
    gain = evaluation.curve(after, binary=False, minus=before)
    np.testing.assert_allclose(gain.value, 0.125, rtol=1e-5)
    np.testing.assert_allclose(gain.error, 0, atol=1e-7)
    assert evaluation.curve(after, binary=False).error[0] > 0.02


def test_a_failed_sample_is_a_try_without_a_reward():
    nan = np.nan
    scores = np.array([[-0.1, -0.2, nan, -0.4, nan], [nan, nan, nan, nan, 2.0], [nan] * 5])
    found = evaluation.best_of_k(scores, binary=False)
    for row, number in itertools.product(range(2), range(4)):
        subsets = itertools.combinations(scores[row], (1, 2, 4, 5)[number])
        best = [np.nanmax(subset) for subset in subsets if not np.isnan(subset).all()]
        np.testing.assert_allclose(found[row, number], np.mean(best), rtol=1e-6)
    assert np.isnan(found[2]).all()
    np.testing.assert_allclose(evaluation.best_of_k(scores[0, :4], binary=False)[-1], -0.1)
    # As rewards of 0 and 1: no failure is correct.
    found = evaluation.best_of_k(scores >= -0.5, binary=True)
    np.testing.assert_allclose(found[:, 0], [3 / 5, 1 / 5, 0], rtol=1e-6)


def test_a_problem_whose_samples_all_fail_has_no_value_and_no_share_in_a_curve():
    scores = np.random.default_rng(4).random((2, 5, 4)).astype(np.float32)
    broken = scores.copy()
    broken[1, 3] = np.nan
    curve = evaluation.curve(broken, binary=False)
    rest = evaluation.curve(np.delete(scores, 3, axis=1), binary=False)
    assert (curve.problems, evaluation.curve(scores, binary=False).problems) == (4, 5)
    np.testing.assert_array_equal(curve.value, rest.value)
    np.testing.assert_array_equal(curve.error, rest.error)
    gain = evaluation.curve(scores, binary=False, minus=broken[1])
    assert gain.problems == 4
    nothing = evaluation.curve(np.full((1, 2, 4), np.nan), binary=False)
    assert nothing.problems == 0
    assert np.isnan(nothing.value).all()
    assert np.isnan(nothing.error).all()
