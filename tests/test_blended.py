"""MaxPO with a fraction of its baseline: values, its two ends, the shared rules, and no bias."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import test_unbiasedness as exact

from maxpo import estimators

RNG = np.random.default_rng(0)
N = 6
GROUPS = {
    "distinct": RNG.normal(size=N),
    "tied": np.array([1.0, 1.0, 0.0, 2.0, 2.0, 0.0]),
    "binary": np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0]),
    "constant": np.full(N, 3.0),
}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, -0.7, 2.5])
@pytest.mark.parametrize("k", range(1, N))
@pytest.mark.parametrize("group", list(GROUPS.values()), ids=list(GROUPS))
def test_definition(group, k, weight):
    """By enumeration of subsets: k (EI_i - w B_i)."""
    expected = k * (oracles.improvement(group, k) - weight * oracles.leave_two_out(group, k))
    with jax.enable_x64(True):
        np.testing.assert_allclose(estimators.blended(group, k, weight), expected, atol=1e-12)


@pytest.mark.parametrize("k", [*range(1, N), 1.5])
def test_ends_are_the_published_estimators_bit_for_bit(k):
    r = RNG.normal(size=(7, N)).astype(np.float32)
    np.testing.assert_array_equal(estimators.blended(r, k, 1), estimators.maxpo(r, k))
    np.testing.assert_array_equal(estimators.blended(r, k, 0), estimators.pkpo_loo_minus_one(r, k))


def test_each_group_may_have_its_own_weight():
    r, w = RNG.normal(size=(4, 3, N)), RNG.random((4, 3))
    one_by_one = [[estimators.blended(r[i, j], 2, w[i, j]) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(estimators.blended(r, 2, w), one_by_one, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        estimators.blended(r, 2, w[0])[1], estimators.blended(r[1], 2, w[0])
    )


def test_masked_equals_gathered_and_traced_k_equals_static():
    r, w = RNG.normal(size=(3, N)).astype(np.float32), np.float32([-0.5, 0.4, 1.5])
    where = np.array([True, False, True, True, False, True])
    masked = np.asarray(estimators.blended(r, 2, w, where=where))
    gathered = estimators.blended(r[:, where], 2, w)
    np.testing.assert_allclose(masked[:, where], gathered, rtol=1e-5, atol=1e-6)
    assert not masked[:, ~where].any()
    static = estimators.blended(r, 2, w)
    np.testing.assert_allclose(jax.jit(estimators.blended)(r, 2.0, w), static, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_into_rewards_or_weight():
    def loss(rewards, weight):
        return jnp.sum(estimators.blended(rewards, 2, weight) ** 2)

    for gradient in jax.grad(loss, (0, 1))(jnp.arange(float(N)), 0.3):
        assert not np.any(gradient)


@pytest.mark.parametrize("k", [0, N])
def test_bad_k(k):
    with pytest.raises(ValueError, match=f"blended: expected 1 <= k .* got k = {k}"):
        estimators.blended(np.arange(float(N)), k, 0.5)


def test_bad_weights():
    with pytest.raises(ValueError, match=r"shape \[4\] of the groups, got shape \[3\]"):
        estimators.blended(np.ones((4, N)), 2, np.ones(3))


@exact.arms
@pytest.mark.parametrize("k", range(1, exact.N))
@pytest.mark.parametrize("weight", [0.3, 1.7])
def test_unbiased_for_every_constant_weight(weight, k, arm_rewards):
    actual = exact.expected_gradient(lambda r: estimators.blended(r, k, weight), arm_rewards)
    exact.same(actual, exact.objective_gradient(arm_rewards, k))
