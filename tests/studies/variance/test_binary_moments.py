"""The closed form for two rewards, against enumeration, and what it says about MaxPO."""

import jax
import numpy as np
import pytest
from gradient_oracles import enumerated

from maxpo import estimators
from maxpo.studies.variance import moments
from maxpo.studies.variance.binary_moments import exact_moments
from maxpo.studies.variance.points import two_reward_bandits

N = 4


@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("reinforce", None),
        ("rloo", None),
        ("grpo", None),
        ("pkpo", 3),
        ("pkpo_loo", 2),
        ("pkpo_loo_minus_one", 1),
        ("pkpo_loo_minus_one", 4),
        ("maxpo", 2),
    ],
)
@pytest.mark.parametrize(("right", "wrong"), [(2, 1), (1, 3)])
def test_closed_form_equals_enumeration(name, k, right, wrong):
    function = estimators.get(name)

    def advantages(rewards):
        return function(rewards) if k is None else function(rewards, k)

    p = np.array([0.35 / right] * right + [0.65 / wrong] * wrong)
    rewards = np.array([1.0] * right + [0.0] * wrong)
    actual = exact_moments(
        advantages, group_size=N, success_rate=0.35, right_arms=right, wrong_arms=wrong
    )
    np.testing.assert_allclose(
        actual, enumerated(advantages, np.log(p), rewards, N), rtol=1e-11, atol=1e-15
    )


def test_monte_carlo_agrees_on_a_thousand_arms():
    sampled = moments.estimator_moments(
        jax.random.key(0),
        two_reward_bandits(1000, 0.3, 64),
        np.array([4.0], np.float32),
        names=("pkpo_loo_minus_one", "maxpo"),
        group_size=8,
        batches=512,
    )
    for index, name in enumerate(("pkpo_loo_minus_one", "maxpo")):
        trace, signal = exact_moments(
            lambda rewards, name=name: estimators.get(name)(rewards, 4),
            group_size=8,
            success_rate=0.3,
            right_arms=500,
            wrong_arms=500,
        )
        estimate, error = moments.mean(sampled.trace[:, 0, index])
        assert abs(estimate - trace) < 4 * error < 0.1 * trace
        estimate, error = moments.mean(sampled.signal[:, 0, index])
        assert abs(estimate - signal) < 4 * error


def variances(k, n, success_rate, arms):
    return [
        exact_moments(
            lambda rewards, name=name: estimators.get(name)(rewards, k),
            group_size=n,
            success_rate=success_rate,
            right_arms=arms // 2,
            wrong_arms=arms // 2,
        )[0]
        for name in ("pkpo_loo_minus_one", "maxpo")
    ]


@pytest.mark.parametrize("n", [4, 9])
def test_with_many_arms_maxpo_never_loses_more_than_its_loss_at_rare_success(n):
    """One success among N: the others pay it back, which adds 1 / (N - 1) to the squares."""
    for k in range(1, n):
        for success_rate in (1e-6, 0.05, 0.3, 0.5, 0.9):
            reference, maxpo = variances(k, n, success_rate, 2 * 10**6)
            assert maxpo / reference <= n / (n - 1) + 1e-6
        reference, maxpo = variances(k, n, 1e-6, 2 * 10**6)
        np.testing.assert_allclose(maxpo / reference, n / (n - 1), rtol=1e-4)
        reference, maxpo = variances(k, n, 0.9, 2 * 10**6)
        assert maxpo < 0.8 * reference


def test_with_two_arms_maxpo_loses_at_high_success():
    reference, maxpo = variances(4, 8, 0.7, 2)
    assert maxpo > 2 * reference
