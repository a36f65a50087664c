"""Step sizes are chosen without looking at what is reported, and samples are counted right."""

import numpy as np
import pytest

from maxpo.studies.centering import comparison


def test_samples_to():
    curve = np.array([0.0, 0.4, 0.3, 0.8, 0.9])
    assert comparison.samples_to(curve, 0.2, 400) == 50
    assert comparison.samples_to(curve, 0.4, 400) == 100
    assert comparison.samples_to(curve, 0.55, 400) == 250
    assert comparison.samples_to(curve, 0.95, 400) == np.inf
    assert comparison.samples_to(curve, 0.0, 400) == 0


def test_best_and_fastest_step_may_differ():
    # At three points in time, by step size, for one seed: the second is fast and ends low.
    curves = np.array([[0.0, 0.0, 0.0], [0.3, 0.7, np.nan], [0.9, 0.8, np.nan]])[:, :, None]
    assert comparison.best_step(curves[-1]) == 0
    assert comparison.fastest_step(curves, 0.6) == 1
    assert comparison.fastest_step(curves, 0.95) == 0


def test_target_is_a_share_of_the_lower_gain():
    first = np.array([[0.1, 0.3], [0.9, 1.1]])
    second = np.array([[0.1, 0.3], [0.6, 0.8]])
    assert comparison.target_of(first, second, 0.5) == pytest.approx(0.45)


def test_halves_share_no_seed():
    chosen, reported = comparison.halves(7)
    numbers = np.arange(7)
    assert [*numbers[chosen], *numbers[reported]] == list(range(7))


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).standard_normal(20)
    value, error = comparison.jackknife(lambda seeds: x[seeds].mean(), 20)
    assert value == pytest.approx(x.mean())
    assert error == pytest.approx(x.std(ddof=1) / 20**0.5)
