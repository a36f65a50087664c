"""The training state before the first update, made where it belongs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maxpo import parallel, training
from maxpo.adaptive_k import init_success_estimate

__all__ = ["make_initial_state"]


def make_initial_state(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    *,
    layout: Callable[[Any], Any],
    problems: int | None = None,
) -> training.TrainState:
    """The state before any training, in one program: no device holds the whole of what is cut.

    Args:
      params: What is trained; copied, because updates donate their state.
      optimizer: Gives the moments.
      layout: Where a state lies on a mesh.
      problems: Of how many it counts how often each is solved. None: it does not.
    """

    @jax.jit
    def init(params: nnx.State) -> training.TrainState:
        state = training.init_state(jax.tree.map(jnp.copy, params), optimizer)
        if problems is not None:
            state = state._replace(success=init_success_estimate(problems))
        return parallel.constrain_to(state, layout(state))

    return init(params)
