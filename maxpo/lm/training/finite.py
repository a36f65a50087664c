"""Parameters are finite before they are saved: what is saved takes the place of what was good."""

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo import runs

__all__ = ["check_parameters"]


def check_parameters(step: int, params: nnx.State) -> None:
    """Stops training on parameters that are NaN or infinite.

    The loss of an update and its gradient are those of the parameters before it: they do not tell
    what the optimizer has made of them.

    Raises:
      FloatingPointError: Naming the step and the first array.
    """
    runs.check_finite(step, {"parameters": jax.device_get(_marks(params))})


@jax.jit
def _marks(params: nnx.State) -> nnx.State:
    """NaN in the place of each array that is not finite, and 0 of others."""
    return jax.tree.map(lambda x: jnp.where(jnp.all(jnp.isfinite(x)), 0.0, jnp.nan), params)
