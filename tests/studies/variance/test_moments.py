"""The Monte Carlo machinery, against bandits whose every group can be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_oracles import enumerated

from maxpo import estimators
from maxpo.studies.variance import moments
from maxpo.studies.variance.moments import Bandits, estimator_moments, gradient_moments

REWARDS = np.array([0.2, 1.7, -0.4])
SPREAD = np.array([0.3, -0.5, 0.9])
NEARLY_SURE = np.array([7.0, 0.0, -1.0])


def copies(logits, rewards, count):
    return Bandits(
        jnp.tile(jnp.float32(logits), (count, 1)), jnp.tile(jnp.float32(rewards), (count, 1))
    )


@pytest.mark.parametrize("logits", [SPREAD, NEARLY_SURE], ids=["spread", "nearly sure"])
def test_moments_equal_enumeration(logits):
    """Within 4 standard errors, for unbiased and for biased advantages of one call."""
    functions = [
        estimators.reinforce,
        estimators.grpo,
        lambda r: estimators.pkpo(r, 2),
        lambda r: estimators.maxpo(r, 2),
    ]
    sampled = gradient_moments(
        jax.random.key(3),
        copies(logits, REWARDS, 64),
        lambda rewards: jnp.stack([function(rewards) for function in functions]),
        group_size=4,
        batches=4096,
    )
    for index, function in enumerate(functions):
        exact = enumerated(function, logits, REWARDS, 4)
        for leaf, value in zip(sampled, exact, strict=True):
            estimate, error = moments.mean(leaf[:, index])
            assert abs(estimate - value) < 4 * error
        # So that agreement means something: the variances are known to a few percent.
        trace = moments.mean(sampled.trace[:, index])
        assert trace.error < 0.05 * trace.value


def test_a_nearly_deterministic_policy_loses_no_digits():
    """All groups have nearly the same gradient: the variance is 1/2000 of its mean square."""
    logits, rewards = np.log([0.99, 0.01]), np.array([1.0, 0.0])
    sampled = gradient_moments(
        jax.random.key(0), copies(logits, rewards, 64), jnp.asarray, group_size=8, batches=8192
    )
    expected, _ = enumerated(estimators.reinforce, logits, rewards, 8)
    estimate, error = moments.mean(sampled.trace)
    assert abs(estimate - expected) < 4 * error < 0.03 * expected


def test_independent_bandits_give_independent_estimates():
    sampled = gradient_moments(
        jax.random.key(0),
        copies(SPREAD, REWARDS, 3),
        lambda rewards: rewards,
        group_size=4,
        batches=16,
    )
    assert sampled.trace.shape == (3,)
    assert len(set(np.asarray(sampled.trace).tolist())) == 3


def test_named_estimators_share_their_groups():
    sampled = estimator_moments(
        jax.random.key(1),
        copies(SPREAD, REWARDS, 2),
        jnp.array([1.0, 3.0]),
        names=("rloo", "maxpo", "pkpo", "reinforce"),
        group_size=5,
        batches=64,
    )
    trace = np.asarray(sampled.trace)
    assert trace.shape == (2, 2, 4)
    np.testing.assert_allclose(trace[:, 0, 0], trace[:, 0, 1], rtol=1e-5)  # k = 1 is rloo,
    np.testing.assert_allclose(trace[:, 0, 2], trace[:, 0, 3], rtol=1e-5)  # and reinforce.
    np.testing.assert_allclose(trace[:, 1, 0], trace[:, 0, 0], rtol=1e-5)  # rloo knows no k.
    assert np.all(np.abs(trace[:, 1, 1] / trace[:, 0, 1] - 1) > 0.05)


def test_a_variance_needs_two_groups():
    with pytest.raises(ValueError, match=r"batches: expected at least 2 for a variance, got 1"):
        gradient_moments(
            jax.random.key(0), copies(SPREAD, REWARDS, 2), jnp.abs, group_size=4, batches=1
        )


def test_errors_of_ratios_are_those_that_repetitions_show():
    """4000 repetitions of 64 correlated pairs: the error is the spread of the estimates."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(4000, 64))
    top = 4 + common + 0.5 * rng.normal(size=common.shape)
    bottom = 2 + 0.5 * common + 0.2 * rng.normal(size=common.shape)
    for function, truth in ((moments.ratio, 2.0), (moments.log2_ratio, 1.0)):
        estimates = np.array([function(t, b) for t, b in zip(top, bottom, strict=True)])
        np.testing.assert_allclose(estimates[:, 0].mean(), truth, atol=0.005)
        np.testing.assert_allclose(estimates[:, 0].std(), estimates[:, 1].mean(), rtol=0.05)


def test_ratios_without_a_value_are_nan():
    zeros, ones = np.zeros(3), np.ones(3)
    assert np.isnan(moments.ratio(ones, zeros)).all()
    assert np.isnan(moments.log2_ratio(zeros, ones)).all()
    assert moments.mean(np.array([1.0, 3.0])) == (2.0, 1.0)
