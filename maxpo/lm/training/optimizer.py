"""The optimizer of a config, with a warm-up and a bound on the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from maxpo.lm.model.sharding import Rules, decays
from maxpo.lm.training.named_optimizers import direction, parse_optimizer

__all__ = ["make_optimizer", "sft_rate", "warmed_up"]


def make_optimizer(
    config: ConfigDict, learning_rate: jax.Array | float, *, rules: Rules | None
) -> optax.GradientTransformation:
    """Clips the norm of the whole gradient, then what is named; matrices alone decay.

    Args:
      config: With `optimizer`, `max_gradient_norm`, `b2` and `weight_decay`.
      learning_rate: A number that may be traced: it changes without another compilation.
      rules: Those of the model, see `decays`.
    """
    named = parse_optimizer("optimizer", config.optimizer)
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        # A chain of its own, as `optax.adamw` is, whose states older checkpoints hold.
        optax.chain(
            direction(named, config.b2, rules),
            optax.add_decayed_weights(config.weight_decay, mask=partial(decays, rules=rules)),
            optax.scale_by_learning_rate(learning_rate),
        ),
    )


def warmed_up(learning_rate: jax.Array, done: jax.Array, warmup_steps: int) -> jax.Array:
    """The learning rate after `done` updates: it grows linearly over `warmup_steps` of them.

    >>> [float(warmed_up(1.0, done, 4)) for done in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    part = (jnp.asarray(done, jnp.float32) + 1) / max(warmup_steps, 1)
    return learning_rate * jnp.minimum(1, part)


def sft_rate(config: ConfigDict, done: jax.Array) -> jax.Array:
    """The learning rate of the fine-tuning after `done` updates.

    A warm-up, as `warmed_up`, then a straight line from its last update, which has the whole rate,
    to the last of all, which has `final_rate` times it.

    Args:
      config: The `sft` of a config.
      done: From 0 to `config.steps - 1`.

    >>> config = ConfigDict({"learning_rate": 1.0, "steps": 6, "warmup_steps": 2})
    >>> config.final_rate = 0.2
    >>> [round(float(sft_rate(config, done)), 3) for done in range(6)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    # The update with the whole rate, and how many follow it.
    whole = max(config.warmup_steps, 1) - 1
    left = max(config.steps - 1 - whole, 1)
    part = jnp.clip((jnp.asarray(done, jnp.float32) - whole) / left, 0, 1)
    rate = config.learning_rate * (1 - (1 - config.final_rate) * part)
    return warmed_up(rate, done, config.warmup_steps)
