"""What training carries from update to update, and one optimizer step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maxpo.adaptive_k import SuccessEstimate

__all__ = ["TrainState", "apply_gradients", "init_state"]


class TrainState(NamedTuple):
    """What training carries from one update to the next.

    Attributes:
      step: Number of updates that are done. Keys are folded from it, so that a resumed run draws
        what an uninterrupted one draws.
      params: Trainable parameters of the policy, in float32 at least.
      opt_state: State of the optimizer.
      success: How often each problem was solved so far; None where no k adapts to it.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    success: SuccessEstimate | None = None


def init_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update.

    Parameters of less than float32 become float32, and so do the optimizer's moments: bfloat16 has
    8 significant bits, in which an update of less than a 512th of a weight leaves it as it was.
    What a policy computes in is its own affair.
    """

    def widened(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_float else x

    params = jax.tree.map(widened, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def apply_gradients(
    state: TrainState, gradients: nnx.State, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimizer step."""
    # Optax mixes dtypes by itself, which JAX's strict mode would refuse.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)
