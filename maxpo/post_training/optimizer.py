"""AdamW with a warm-up and a bound on the gradient."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict


def make_optimizer(
    settings: ConfigDict, learning_rate: jax.Array | float
) -> optax.GradientTransformation:
    """Clips the norm of the whole gradient, then AdamW; matrices alone decay.

    Args:
      settings: With `max_gradient_norm` and `weight_decay`.
      learning_rate: A number that may be traced: it changes without compiling anew.
    """
    return optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.adamw(learning_rate, b2=0.95, weight_decay=settings.weight_decay, mask=_decays),
    )


def warmed_up(learning_rate: jax.Array, done: jax.Array, warm_up: int) -> jax.Array:
    """The learning rate after `done` updates: it grows in a straight line over `warm_up` of them.

    >>> [float(warmed_up(1.0, done, 4)) for done in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return learning_rate * jnp.minimum(1, (jnp.asarray(done, jnp.float32) + 1) / max(warm_up, 1))


def _decays(params: nnx.State) -> nnx.State:
    """True at matrices; norms' scales and biases keep their size."""

    def decays(path: tuple[object, ...], _: jax.Array) -> bool:
        name = jax.tree_util.keystr(path)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)
