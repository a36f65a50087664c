"""Sampling and log-probabilities of the bandit policies."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from flax import nnx

from maxpo.bandits.categorical import Categorical
from maxpo.bandits.gaussian import Gaussian


def make_categorical(hidden=()):
    policy = Categorical(3, 5, hidden=hidden, rngs=nnx.Rngs(0))
    policy.head.kernel[...] = jax.random.normal(jax.random.key(1), policy.head.kernel.shape)
    return policy


OBSERVATIONS = jax.random.normal(jax.random.key(2), (2, 4, 3))


def test_categorical_starts_uniform():
    policy = Categorical(3, 5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(policy.entropy(OBSERVATIONS), np.log(5), rtol=1e-6)


def test_categorical_samples_its_distribution():
    policy = make_categorical(hidden=(8,))
    actions = np.asarray(policy.sample(jax.random.key(3), OBSERVATIONS, 2000))
    assert actions.shape == (2, 4, 2000)
    probabilities = np.asarray(jax.nn.softmax(policy.logits(OBSERVATIONS)), np.float64)
    for place in np.ndindex(2, 4):
        counts = np.bincount(actions[place], minlength=5)
        expected = probabilities[place] / probabilities[place].sum() * 2000
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_categorical_log_prob_and_entropy():
    policy = make_categorical()
    every = jnp.broadcast_to(jnp.arange(5), (2, 4, 5))
    log_probs = np.asarray(policy.log_prob(OBSERVATIONS, every))
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=1e-5)
    entropy = -(np.exp(log_probs) * log_probs).sum(axis=-1)
    np.testing.assert_allclose(policy.entropy(OBSERVATIONS), entropy, rtol=1e-5)


def test_categorical_never_draws_behind_the_last_arm():
    """Sums of probabilities in float32 may stay below 1, and uniforms come close to it."""
    policy = Categorical(1, 1000, rngs=nnx.Rngs(0))
    assert policy.sample(jax.random.key(0), jnp.ones((1, 1)), 100_000).max() == 999


def test_gaussian():
    policy = Gaussian(0.3, 0.1)
    observations = jnp.zeros((2, 1))
    actions = policy.sample(jax.random.key(0), observations, 5000)
    assert actions.shape == (2, 5000)
    law = scipy.stats.norm(0.3, 0.1)
    assert scipy.stats.kstest(np.asarray(actions).ravel(), law.cdf).pvalue > 1e-3
    np.testing.assert_allclose(
        policy.log_prob(observations, actions), law.logpdf(actions), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(policy.entropy(observations), law.entropy(), rtol=1e-6)


def test_gaussian_score():
    """Samples carry no gradient: only the density's mean does."""
    graph, params = nnx.split(Gaussian(0.3, 0.1))

    def total(params):
        policy = nnx.merge(graph, params)
        actions = policy.sample(jax.random.key(0), jnp.zeros((1, 1)), 3)
        return jnp.sum(policy.log_prob(jnp.zeros((1, 1)), actions)), actions

    (_, actions), gradient = jax.value_and_grad(total, has_aux=True)(params)
    expected = np.sum((np.asarray(actions) - 0.3) / 0.1**2)
    np.testing.assert_allclose(jax.tree.leaves(gradient)[0], expected, rtol=1e-5)
