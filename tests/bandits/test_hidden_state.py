"""The bandit with hidden states: its rewards, its share of right arms, and its exact objective."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxpo.bandits import task as bandit
from maxpo.bandits.hidden_state import make_hidden_state_bandit


def make(success_rate=0.3, *, hidden_states=3, num_arms=5, num_features=4):
    return make_hidden_state_bandit(
        jax.random.key(1),
        hidden_states=hidden_states,
        num_arms=num_arms,
        num_features=num_features,
        success_rate=success_rate,
    )


@pytest.mark.parametrize("success_rate", [0.05, 0.5, 0.9])
def test_share_of_right_arms(success_rate):
    task = make(success_rate, hidden_states=1, num_arms=400, num_features=16)
    table = np.asarray(task.table(task.contexts(jax.random.key(2), 400)))
    # By arm the contexts share weights: 400 independent arms at worst.
    by_arm = table[:, 0].mean(axis=0)
    assert set(np.unique(table)) == {0, 1}
    assert abs(by_arm.mean() - success_rate) < 5 * by_arm.std() / 400**0.5


def test_gaussian_rewards_are_the_scores():
    task = make(None)
    contexts = task.contexts(jax.random.key(2), 6)
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=-1), 1, rtol=1e-6)
    expected = [[[w @ x for w in state] for state in task.weights] for x in contexts]
    np.testing.assert_allclose(task.table(contexts), expected, rtol=1e-5, atol=1e-6)


def test_draws_come_from_all_hidden_states_alike():
    task = make(None)
    contexts, rewards = task.draw(jax.random.key(3), 3000)
    distance = np.abs(np.asarray(task.table(contexts)) - np.asarray(rewards)[:, None]).max(axis=-1)
    assert np.all(np.sort(distance, axis=1)[:, 0] < 1e-5)
    counts = np.bincount(np.argmin(distance, axis=1), minlength=3)
    assert np.all(np.abs(counts - 1000) < 4 * (3000 * 2 / 9) ** 0.5)


@pytest.mark.parametrize("success_rate", [0.3, None])
def test_expected_max_equals_enumeration(success_rate):
    task = make(success_rate)
    table = np.asarray(task.table(task.contexts(jax.random.key(2), 2)))
    p = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(4), (2, 5))))
    values = [
        sum(
            np.prod(p[c, list(arms)]) * table[c, h, list(arms)].max()
            for arms in itertools.product(range(5), repeat=3)
        )
        for c in range(2)
        for h in range(3)
    ]
    actual = task.expected_max(jnp.asarray(p), jnp.asarray(table), 3)
    np.testing.assert_allclose(actual, np.mean(values), rtol=1e-5)


def test_closed_form_of_two_rewards_is_the_general_one():
    task = make(0.3)
    table = task.table(task.contexts(jax.random.key(2), 7))
    p = jax.nn.softmax(jax.random.normal(jax.random.key(4), (2, 7, 5)))
    general = jnp.mean(bandit.expected_max(p[..., None, :], table, 2.5), axis=(-2, -1))
    np.testing.assert_allclose(task.expected_max(p, table, 2.5), general, rtol=1e-5)
