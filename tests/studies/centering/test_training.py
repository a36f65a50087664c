"""Training and moments against Flax policies, JAX gradients and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maxpo import estimators, losses
from maxpo.bandits import Categorical
from maxpo.studies.centering import training
from maxpo.studies.centering.moments import expected_directions, measure
from maxpo.studies.centering.training import Shape, train

SHAPE = Shape(
    estimators=("rloo", "maxpo"),
    optimizer="sgd",
    gaussian=True,
    hidden_states=2,
    num_arms=4,
    num_features=3,
    group_size=5,
    groups_per_update=2,
    updates=4,
    evaluations=2,
    test_contexts=6,
)
KEYS = jax.random.split(jax.random.key(0), 2)
K, RATE, B2 = jnp.float32(2), jnp.float32(0.3), jnp.float32(0.9)


def policy_of(weights):
    policy = Categorical(weights.shape[1], weights.shape[0], rngs=nnx.Rngs(0))
    policy.head.kernel[...] = weights.T
    return policy


def loss_gradient(weights, contexts, actions, advantages):
    """Of the library's own loss, by JAX, with the sign of an ascent."""

    def objective(weights):
        log_probs = policy_of(weights).log_prob(contexts, actions)
        return -losses.score_function_loss(log_probs, advantages)

    return jax.grad(objective)(weights)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_training_is_that_of_a_flax_policy_with_optax(optimizer):
    shape = SHAPE._replace(optimizer=optimizer)
    sizes = jnp.array([0.5, 2.0])
    curves = train(shape, KEYS, sizes, K, RATE, B2)
    tasks = training.make_tasks(shape, KEYS, RATE)
    rule = {
        "sgd": optax.sgd(2.0),
        "momentum": optax.sgd(2.0, momentum=0.9),
        "adam": optax.adam(2.0, b2=0.9),
    }[optimizer]
    seed, size = 1, 1
    for e, estimator in enumerate((estimators.rloo, lambda r: estimators.maxpo(r, 2))):
        weights = jnp.zeros((4, 3))
        state = rule.init(weights)
        for number in range(4):
            keys = training.fold_in(KEYS, 2, number)
            drawn = training.draw_groups(tasks, keys, 2, 5)
            contexts, arm_rewards, _ = (part[seed] for part in drawn)
            _, actions, _ = training.sample_groups(jnp.stack([weights] * 2), *drawn)
            actions = actions[seed]
            rewards = jnp.take_along_axis(arm_rewards, actions, axis=-1)
            gradient = loss_gradient(weights, contexts, actions, estimator(rewards))
            step, state = rule.update(-gradient, state, weights)
            weights = weights + step
        np.testing.assert_allclose(
            curves.policies[-1, e, size, seed], weights, rtol=1e-4, atol=1e-4
        )


def test_objectives_are_those_of_the_policies():
    curves = train(SHAPE, KEYS, jnp.array([1.0, 4.0]), K, RATE, B2)
    assert curves.objectives.shape == (3, 2, 2, 2)
    tasks = training.make_tasks(SHAPE, KEYS, RATE)
    seed = 1
    task = tasks._replace(weights=tasks.weights[seed])
    contexts = task.contexts(training.fold_in(KEYS, 1)[seed], 6)
    probabilities = jax.nn.softmax(policy_of(curves.policies[2, 1, 1, seed]).logits(contexts))
    expected = task.expected_max(probabilities, task.table(contexts), 2)
    np.testing.assert_allclose(curves.objectives[2, 1, 1, seed], expected, rtol=1e-5)


def test_samples_follow_the_policy():
    policies = jax.random.normal(jax.random.key(5), (1, 4, 3))
    contexts = jnp.array([[[1.0, 0.0, 0.0]]])
    uniforms = jax.random.uniform(jax.random.key(6), (1, 1, 40_000))
    rewards = jnp.arange(4.0).reshape(1, 1, 4)
    p, actions, drawn = training.sample_groups(policies, contexts, rewards, uniforms)
    np.testing.assert_allclose(p[0, 0], jax.nn.softmax(policies[0, :, 0]), rtol=1e-6)
    np.testing.assert_array_equal(actions, drawn)
    counts = np.bincount(np.asarray(actions).ravel(), minlength=4)
    p = np.asarray(p).ravel()
    assert np.all(np.abs(counts - 40_000 * p) < 4 * (40_000 * p * (1 - p)) ** 0.5)


def test_moments_equal_enumeration():
    # With one feature a context is 1 or -1, and with one state nothing is left but the actions.
    shape = SHAPE._replace(hidden_states=1, num_features=1, num_arms=3, group_size=3)
    keys = jax.random.split(jax.random.key(2), 1)
    policy = jnp.array([[[0.3], [-0.4], [0.1]]])
    names = ("pkpo_loo_minus_one", "maxpo")
    groups = 8000
    moments = measure(shape, names, groups, keys, policy[None], K, RATE)
    weights = np.asarray(training.make_tasks(shape, keys, RATE).weights)[0, 0, :, 0]
    batches = np.array(list(itertools.product(range(3), repeat=3)))
    expected, by_batch = np.zeros((len(names), 4, 3)), []
    for x in (1.0, -1.0):
        p = np.asarray(jax.nn.softmax(policy[0, :, 0] * x))
        odds = np.prod(p[batches], axis=1) / 2
        scores = np.eye(3)[batches] - p
        for e, name in enumerate(names):
            advantages = np.asarray(estimators.get(name)((weights * x)[batches], 2))
            gradients = np.einsum("bn,bna->ba", advantages, scores) / 3 * x
            for power in range(1, 5):
                expected[e, power - 1] += odds @ gradients**power
            by_batch.append((e, odds, gradients))
    divided = np.zeros((len(names), 3))
    for e, odds, gradients in by_batch:
        divided[e] += odds @ (gradients / np.sqrt(0.3 * gradients**2 + 0.7 * expected[e, 1]))
    # Both are unbiased for the same mean, which measure has from contexts alone.
    np.testing.assert_allclose(expected[0, 0], expected[1, 0], atol=1e-6)
    spread = np.abs(expected[0, 0]).max() / groups**0.5
    np.testing.assert_allclose(moments.means[:, 0, 0, :, 0], [expected[0, 0]] * 2, atol=5 * spread)
    error = 5 * (expected[:, 3] / groups) ** 0.5
    assert np.all(np.abs(moments.second[:, 0, 0, :, 0] - expected[:, 1]) < error)
    # Both of them through Adam's division, where a gradient has a part in its own denominator.
    squares = jnp.asarray(expected[:, 1])[:, None, None, :, None]
    one_group = shape._replace(groups_per_update=1)
    directions = expected_directions(
        one_group, names, groups, keys, policy[None], K, RATE, squares, jnp.float32(0.3)
    )
    np.testing.assert_allclose(directions[:, 0, 0, :, 0], divided, atol=5 * 2 / groups**0.5)
