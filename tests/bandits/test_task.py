"""Exact objectives against enumeration, integrals and sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from flax import nnx

from maxpo import max_at_k
from maxpo.bandits import task as bandit


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("rewards", [[0.3, -1.0, 2.0], [0.0, 1.0, 1.0], [5.0, 5.0, 5.0]])
def test_expected_max_equals_enumeration(rewards, k):
    probabilities, rewards = np.array([0.2, 0.5, 0.3]), np.array(rewards)
    expected = sum(
        np.prod(probabilities[list(arms)]) * rewards[list(arms)].max()
        for arms in itertools.product(range(3), repeat=k)
    )
    actual = bandit.expected_max(jnp.array(probabilities), jnp.array(rewards), k)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def make(law="gaussian", law_parameter=1.0, num_features=2):
    return bandit.make_contextual_bandit(
        jax.random.key(3),
        num_contexts=5,
        num_features=num_features,
        num_arms=7,
        law=bandit.REWARD_LAWS[law],
        law_parameter=law_parameter,
    )


def test_max_at_k_of_samples_is_unbiased_for_the_exact_objective():
    task = make()
    policy = task.make_policy(nnx.Rngs(0))
    policy.head.kernel[...] = jax.random.normal(jax.random.key(1), policy.head.kernel.shape)
    keys = jax.random.split(jax.random.key(2), 4000)
    rewards = jax.vmap(lambda key: task.reward(policy.sample(key, task.observations, 6)))(keys)
    for k in (1, 3, 6):
        values = np.asarray(max_at_k(rewards, k)).mean(axis=-1)
        error = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - task.expected_max(policy, k)) < 4 * error


def test_contexts_of_the_uneven_law_are_from_hard_to_easy():
    rewards = bandit.uneven(jax.random.key(0), (5, 100), 0.81)
    assert set(np.unique(rewards)) == {0, 1}
    np.testing.assert_array_equal(rewards.sum(axis=-1), [1, 3, 9, 27, 81])
    assert len({tuple(np.flatnonzero(row)[:1]) for row in np.asarray(rewards)}) > 1
    np.testing.assert_array_equal(
        bandit.uneven(jax.random.key(0), (2, 4), 0.1).sum(axis=-1), [1, 1]
    )


def test_rewards_follow_their_context():
    task = make()
    actions = jnp.array([[0, 6]] * 5)
    np.testing.assert_array_equal(task.reward(actions), task.rewards[:, [0, 6]])


def test_without_features_contexts_are_seen():
    np.testing.assert_array_equal(make(num_features=0).observations, np.eye(5))


def test_reward_laws():
    shape, key = (20_000,), jax.random.key(0)
    gaussian = bandit.gaussian(key, shape, 3.0)
    assert scipy.stats.kstest(np.asarray(gaussian) / 3, "norm").pvalue > 1e-3
    bernoulli = np.asarray(bandit.bernoulli(key, shape, 0.2))
    assert set(np.unique(bernoulli)) == {0, 1}
    assert scipy.stats.binomtest(int(bernoulli.sum()), len(bernoulli), 0.2).pvalue > 1e-3
    tailed = np.asarray(bandit.heavy_tailed(key, shape, 2.0))
    law = scipy.stats.t(2)
    assert scipy.stats.kstest(tailed, lambda x: 2 * law.cdf(x) - 1).pvalue > 1e-3


@pytest.mark.parametrize("mean", [-0.2, 0.5, 0.9, 1.0, 1.2])
@pytest.mark.parametrize("k", [1, 4, 2.5])
def test_square_objective_equals_adaptive_quadrature(mean, k):
    law = scipy.stats.norm(mean, 0.1)

    def survival(r):
        return 1 - (1 - (law.cdf(1) - law.cdf(np.sqrt(r)))) ** k

    points = np.clip(np.linspace(mean - 0.5, mean + 0.5, 11), 0, 1) ** 2
    expected = scipy.integrate.quad(survival, 0, 1, points=points, limit=500, epsabs=1e-11)[0]
    actual = bandit.expected_max_of_square(mean, 0.1, k)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-7)


def test_square_task():
    task = bandit.SquareOnInterval(jnp.zeros((1, 1)), 0.5, 0.1)
    np.testing.assert_allclose(task.reward(jnp.array([-0.1, 0.5, 1.0, 1.1])), [0, 0.25, 1, 0])
    policy = task.make_policy(nnx.Rngs(0))
    np.testing.assert_allclose(task.expected_max(policy, 1), 0.26, rtol=1e-5)
