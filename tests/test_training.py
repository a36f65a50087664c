"""The optimizer step."""

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maxpo import training


def test_apply_gradients_is_one_optimizer_step():
    _, params = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    optimizer = optax.sgd(0.5)
    state = training.init_state(params, optimizer)
    gradients = jax.tree.map(jnp.ones_like, params)
    after = training.apply_gradients(state, gradients, optimizer)
    assert (int(state.step), int(after.step)) == (0, 1)
    chex.assert_trees_all_close(after.params, jax.tree.map(lambda p: p - 0.5, params))
