"""Means, differences and standard errors."""

import numpy as np
import pytest

from maxpo.evaluate._curves import curve, difference

KS = np.array([1])


def test_one_seed_has_the_error_of_its_problems():
    found = curve(KS, np.array([[[0.0], [1.0], [1.0], [0.0]]]))
    # The variance of 0, 1, 1, 0 is 4 * 0.25 / 3.
    assert found.value.item() == 0.5
    assert found.error.item() == pytest.approx(np.sqrt(1 / 3 / 4))
    assert (found.problems.item(), found.left_out.item()) == (4, 0)


def test_seeds_add_what_problems_do_not_explain():
    # Values are 0.3 * seed + 0.1 * problem without a residual: both variances are seen whole.
    seeds, problems = np.array([0.0, 1.0]), np.array([0.0, 1.0, 2.0])
    values = 0.3 * seeds[:, None] + 0.1 * problems
    found = curve(KS, values[..., None])
    assert found.value.item() == pytest.approx(0.25)
    expected = 0.3**2 * 0.5 / 2 + 0.1**2 * 1 / 3
    assert found.error.item() == pytest.approx(np.sqrt(expected))


def test_equal_seeds_add_nothing():
    one = np.random.default_rng(0).random((1, 20, 1))
    assert curve(KS, np.tile(one, (3, 1, 1))).error == pytest.approx(curve(KS, one).error)


def simulated(rng, shape, *, problem, seed, rest):
    """Values with random problems, seeds and residuals, many times: `[times, S, P]`."""
    times, S, P = shape
    problems = problem * rng.normal(size=(times, 1, P))
    return problems + seed * rng.normal(size=(times, S, 1)) + rest * rng.normal(size=(times, S, P))


def test_errors_are_those_of_repeated_experiments():
    values = simulated(np.random.default_rng(0), (4000, 5, 12), problem=0.5, seed=0.4, rest=0.3)
    found = curve(np.arange(1, 4001), np.moveaxis(values, 0, -1))
    actual = found.value.var()
    assert np.mean(found.error**2) == pytest.approx(actual, rel=0.1)
    # Without the seeds' part the variance would be less than two thirds of that.
    assert np.mean(found.error**2) > 1.4 * np.mean(values.mean(axis=1).var(axis=1, ddof=1) / 12)


def test_errors_of_differences_are_those_of_repeated_experiments():
    rng = np.random.default_rng(1)
    first = simulated(rng, (4000, 4, 12), problem=0.0, seed=0.4, rest=0.3)
    other = simulated(rng, (4000, 6, 12), problem=0.2, seed=0.4, rest=0.3)
    hard = 5 * rng.normal(size=(4000, 1, 12))
    values, minus = (np.moveaxis(x + hard, 0, -1) for x in (other, first))
    found = difference(np.arange(1, 4001), values, minus)
    assert np.mean(found.error**2) == pytest.approx(found.value.var(), rel=0.1)
    # What the problems share has canceled.
    assert found.error.mean() < 0.3 * curve(np.arange(1, 4001), values).error.mean()


def test_differences_are_those_of_common_problems():
    values = np.array([[[0.5], [0.75], [np.nan], [1.0]]])
    minus = np.array([[[0.0], [0.5], [0.25], [np.nan]]])
    found = difference(KS, values, minus)
    assert found.value.item() == pytest.approx((0.5 + 0.25) / 2)
    assert found.error.item() == pytest.approx(0.125)  # 0.25 / sqrt(2) / sqrt(2)
    assert (found.problems.item(), found.left_out.item()) == (2, 2)


def test_the_same_values_differ_by_exactly_nothing():
    values = np.random.default_rng(0).random((3, 9, 1))
    found = difference(KS, values, values)
    assert found.value.item() == 0


def test_a_problem_counts_where_every_seed_has_it():
    values = np.array([[[0.5, 0.5], [0.75, np.nan]], [[0.5, 1.0], [0.25, 0.0]]])
    found = curve(np.array([1, 2]), values)
    assert found.problems.tolist() == [2, 1]
    assert found.left_out.tolist() == [0, 1]
    assert found.value.tolist() == [0.5, 0.75]


def test_without_problems_there_is_no_value_and_with_one_no_error():
    found = curve(np.array([1, 2]), np.array([[[0.5, np.nan]]]))
    assert found.value.tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
    assert np.isnan(found.error).all()
    assert found.problems.tolist() == [1, 0]
