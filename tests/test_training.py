"""Estimators bound to a k that changes, and the optimizer step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maxpo import estimators, training
from maxpo.studies.variance.unbiasedness import VARIANTS

REWARDS = jax.random.normal(jax.random.key(0), (2, 6))


def test_k_schedule():
    assert training.k_schedule(4, 4, 0) == 4
    schedule = training.k_schedule(5.0, 1.0, 8)
    assert [float(schedule(step)) for step in (0, 2, 8, 100)] == [5, 4, 1, 1]
    with pytest.raises(ValueError, match=r"expected k >= 1, got k from 2 to 0\.5"):
        training.k_schedule(2, 0.5, 10)
    with pytest.raises(ValueError, match="at least 1 update, got 0"):
        training.k_schedule(2, 1, 0)


def test_a_changing_k_compiles_once():
    advantages = training.bind_estimator("maxpo", training.k_schedule(5.0, 1.0, 4))
    compiled = jax.jit(chex.assert_max_traces(advantages, n=1))
    for step in range(6):
        expected = estimators.maxpo(REWARDS, max(5 - step, 1))
        np.testing.assert_allclose(compiled(REWARDS, jnp.int32(step)), expected, atol=3e-6)


@pytest.mark.parametrize("name", estimators.names())
def test_every_estimator_can_be_bound(name):
    needed = {"l_statistic": {"rank_weights": [0.5, 0.5]}, "blended": {"weight": 0.3}}
    options = needed.get(name, {})
    assert training.needs_only_k(name) == (not options)
    assert training.bind_estimator(name, 3, **options)(REWARDS, 0).shape == REWARDS.shape
    if options:
        with pytest.raises(TypeError, match=rf"{name}: expected the options .*, got \[\]"):
            training.bind_estimator(name, 3)


def test_options_are_passed_on():
    weights = [0.0, 0.0, 1.0]
    bound = training.bind_estimator("l_statistic", 3, rank_weights=weights)
    np.testing.assert_array_equal(bound(REWARDS, 0), estimators.l_statistic(REWARDS, weights))
    with pytest.raises(TypeError, match=r"grpo: expected options among .*epsilon.*got \['eps'\]"):
        training.bind_estimator("grpo", 3, eps=1.0)


def test_estimators_of_binary_rewards_are_refused_for_graded_ones():
    assert {name for name, variant in VARIANTS.items() if variant.binary} == {*training.BINARY}
    training.check_graded(["rloo", "maxpo"], "methods", "task.binary")
    for name in training.BINARY:
        with pytest.raises(ValueError, match=f"methods: .* as task.binary says, got {name}, which"):
            training.check_graded(["rloo", name], "methods", "task.binary")


def test_apply_gradients_is_one_optimizer_step():
    _, params = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    optimizer = optax.sgd(0.5)
    state = training.init_state(params, optimizer)
    gradients = jax.tree.map(jnp.ones_like, params)
    after = training.apply_gradients(state, gradients, optimizer)
    assert (int(state.step), int(after.step)) == (0, 1)
    chex.assert_trees_all_close(after.params, jax.tree.map(lambda p: p - 0.5, params))
