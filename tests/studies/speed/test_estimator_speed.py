"""The benchmark's references compute what they are compared with."""

import jax
import numpy as np
import pytest

from maxpo import estimators
from maxpo.studies.speed import estimator_speed

REWARDS = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
REWARDS[2] = [0, 1, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("k", [2, 3, 8])
def test_quadratic_form_equals_maxpo(k):
    actual = jax.jit(estimator_speed.leave_two_out_quadratic, static_argnums=1)(REWARDS, k)
    np.testing.assert_allclose(actual, estimators.maxpo(REWARDS, k), atol=3e-6)


@pytest.mark.parametrize("k", [2, 3, 9])
def test_recurrence_equals_pkpo(k):
    actual = 9 * np.stack([estimator_speed.pkpo_recurrence(group, k) for group in REWARDS])
    np.testing.assert_allclose(actual, estimators.pkpo_loo_minus_one(REWARDS, k), atol=3e-6)


def test_sort_with_index():
    ranked, order = estimator_speed.sort_with_index(REWARDS)
    np.testing.assert_array_equal(np.take_along_axis(REWARDS, order, axis=-1), ranked)


def test_sort_keys():
    rewards = np.abs(REWARDS)
    np.testing.assert_array_equal(
        np.asarray(estimator_speed.sort_keys(rewards)).view(np.float32), np.sort(rewards)
    )
