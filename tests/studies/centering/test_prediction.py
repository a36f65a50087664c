"""The formulas of the prediction, against simulated optimizers and hand-made moments."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from maxpo.studies.centering.moments import Moments
from maxpo.studies.centering.prediction import (
    fit,
    own_share,
    predicted_ratio,
    predicted_ratio_of_adam,
    rank_correlation,
    squares_of,
    variance_ratio,
)
from maxpo.studies.centering.training import B1
from maxpo.studies.variance.moments import Estimate

# A gradient that is LARGE with probability RARE, and else a little negative.
LARGE, RARE, SMALL = 3.0, 0.1, -0.2


def adam_directions(groups, b2, chains=2000, updates=1500):
    """Mean of m / sqrt(v) at a stationary gradient, and its standard error over chains."""
    rng = np.random.default_rng(0)
    m, v, total = np.zeros(chains), np.zeros(chains), np.zeros(chains)
    for number in range(updates):
        hits = rng.binomial(groups, RARE, chains)
        g = (hits * LARGE + (groups - hits) * SMALL) / groups
        m, v = B1 * m + (1 - B1) * g, b2 * v + (1 - b2) * g**2
        if number >= updates // 2:
            total += m / np.sqrt(v)
    means = total / (updates - updates // 2)
    return means.mean(), means.std() / chains**0.5


def by_formula(groups, b2):
    """E[g / sqrt(w g^2 + (1 - w) s^2)], and mu / s that it is without a share of its own."""
    hits = np.arange(groups + 1)
    odds = scipy.stats.binom.pmf(hits, groups, RARE)
    g = (hits * LARGE + (groups - hits) * SMALL) / groups
    square, w = odds @ g**2, own_share(b2)
    return odds @ (g / np.sqrt(w * g**2 + (1 - w) * square)), odds @ g / np.sqrt(square)


@pytest.mark.parametrize(("groups", "b2"), [(1, 0.99), (1, 0.95), (4, 0.95)])
def test_mean_direction_of_adam(groups, b2):
    measured, error = adam_directions(groups, b2)
    predicted, without = by_formula(groups, b2)
    # The share in its own denominator is what the formula adds: it has to explain most of it.
    assert abs(measured - predicted) < 0.35 * abs(measured - without) + 4 * error
    assert abs(measured - without) > 10 * error


def hand_made(noise, mean=(0.0, 0.0)):
    """Moments of two estimators on two coordinates: one policy, two seeds alike."""
    mean = np.array(mean)

    def place(moments):
        return jnp.tile(jnp.asarray(moments, jnp.float32)[:, None, None, :, None], (1, 1, 2, 1, 1))

    return Moments(place([mean, mean]), place(np.array(noise) ** 2 + mean**2))


def test_ratios_without_signal():
    moments = hand_made([[2.0, 1.0], [1.0, 1.0]])
    assert variance_ratio(moments).value == pytest.approx(2 / 5)
    for groups in (1, 16):
        assert predicted_ratio(moments, groups).value == pytest.approx(2 / 5)


def test_many_groups_leave_no_difference():
    moments = hand_made([[2.0, 1.0], [1.0, 1.0]], mean=(0.1, 0.2))
    ratios = [predicted_ratio(moments, groups).value for groups in (1, 16, 256, 10**6)]
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(1, abs=1e-3)


def test_sgd_counts_the_signal_once_and_the_noise_by_groups():
    moments = hand_made([[2.0, 1.0], [1.0, 1.0]], mean=(0.6, 0.8))
    assert predicted_ratio(moments, 4).value == pytest.approx((1 + 2 / 4) / (1 + 5 / 4))
    squares = squares_of(moments, 4)[:, 0, 0, :, 0]
    expected = np.array([[0.36 + 4 / 4, 0.64 + 1 / 4], [0.36 + 1 / 4, 0.64 + 1 / 4]])
    np.testing.assert_allclose(squares, expected, rtol=1e-6)


def test_adam_weighs_every_coordinate_by_its_own_noise():
    mean = np.array([0.01, 0.03])
    moments = hand_made([[2.0, 1.0], [1.0, 1.0]], mean=mean)
    directions = moments.means / jnp.sqrt(squares_of(moments, 1))
    ratio = predicted_ratio_of_adam(moments, directions)
    assert ratio.value == pytest.approx((mean**2 @ [1 / 2, 1] / (mean @ mean)) ** 2, rel=1e-3)


def test_coordinates_without_gradient_have_no_square():
    moments = hand_made([[0.0, 1.0], [1.0, 1.0]])
    assert squares_of(moments, 1)[0, 0, 0, 0, 0] == 0


def test_fit_finds_a_line_through_one():
    rng = np.random.default_rng(1)
    x = np.exp(rng.uniform(-1, 0.2, 400))
    y = x**0.7 * np.exp(0.1 * rng.standard_normal(400))
    found = fit([Estimate(v, 1e-6) for v in x], [Estimate(v, 0.1 * v) for v in y])
    assert abs(found.slope - 0.7) < 4 * found.slope_sem
    assert found.slope_sem == pytest.approx(0.1 / np.sum(np.log(x) ** 2) ** 0.5, rel=0.1)
    assert found.rank_correlation == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    tied = np.round(x, 1), np.round(y, 1)
    assert rank_correlation(*tied) == pytest.approx(scipy.stats.spearmanr(*tied).statistic)
    assert np.isnan(rank_correlation([0.5, 0.5, 0.5], [0.5, 0.6, 0.7]))
    # Errors that are too small are found out by the scatter.
    small = fit([Estimate(v, 1e-6) for v in x], [Estimate(v, 0.01 * v) for v in y])
    assert small.slope_sem == pytest.approx(found.slope_sem, rel=0.1)
