"""A policy for grid worlds."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo import losses
from maxpo.mazes.environment import Observation

__all__ = ["GridPolicy", "Kind"]

Kind = Literal["mlp", "conv"]


class GridPolicy(nnx.Module):
    """Softmax over `num_actions` moves, from what a grid world shows.

    `"mlp"` is a perceptron on all numbers of the observation, for local views. `"conv"` has 3 x 3
    convolutions over the grid, and its head sees every cell and the other features, for full views.
    It has no memory: where two places look alike it acts alike. The head starts at zero, so the
    policy starts out uniform.
    """

    def __init__(
        self,
        observation: Observation,
        num_actions: int,
        *,
        kind: Kind = "mlp",
        hidden: Sequence[int] = (32,),
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters.

        Args:
          observation: One observation, or its shapes: grid `[H, W, C]` and features `[F]`.
          num_actions: A.
          kind: `"mlp"` or `"conv"`.
          hidden: Widths of the hidden layers, channels for `"conv"`.
          rngs: Draws the hidden layers.

        Raises:
          ValueError: If the kind is unknown, or the observation has batch axes.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")
        grid, features = observation.grid.shape, observation.features.shape
        if len(grid) != 3 or len(features) != 1:
            raise ValueError(
                f"observation: expected one grid [H, W, C] and features [F], got shapes {grid} "
                f"and {features}"
            )
        self.kind = kind
        height, width, channels = grid
        if kind == "conv":
            widths, copies = (channels, *hidden), 9
            outputs = height * width * widths[-1] + features[0]
        else:
            widths, copies = (math.prod(grid) + features[0], *hidden), 1
            outputs = widths[-1]
        # Nine shifted copies and a matrix: under vmap over parameters a convolution would become a
        # grouped one, for which XLA's CPU backend has no fast code.
        self.hidden = nnx.List(
            nnx.Linear(before * copies, after, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
            for before, after in itertools.pairwise(widths)
        )
        self.head = nnx.Linear(
            outputs, num_actions, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def logits(self, observations: Observation) -> jax.Array:
        """Unnormalised log-probabilities `[..., A]`."""
        grid, features = observations
        batch = grid.shape[:-3]
        if self.kind == "conv":
            for layer in self.hidden:
                grid = jax.nn.relu(layer(_neighbourhoods(grid)))
        values = jnp.concatenate([grid.reshape(*batch, -1), features], axis=-1)
        if self.kind == "mlp":
            for layer in self.hidden:
                values = jax.nn.relu(layer(values))
        return self.head(values)

    def sample(self, key: jax.Array, observations: Observation) -> jax.Array:
        """One action for each observation, `[...]`, int32."""
        # By inversion of the distribution function: one random number a sample, not one an action.
        cumulative = jnp.cumsum(jax.nn.softmax(self.logits(observations)), axis=-1)
        uniform = jax.random.uniform(key, (*cumulative.shape[:-1], 1))
        below = cumulative[..., :-1] <= uniform * cumulative[..., -1:]
        return jnp.sum(below, axis=-1, dtype=jnp.int32)

    def log_prob(self, observations: Observation, actions: jax.Array) -> jax.Array:
        """Log-probabilities `[...]` of one action for each observation."""
        log_probs = jax.nn.log_softmax(self.logits(observations))
        return jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]

    def entropy(self, observations: Observation) -> jax.Array:
        """Entropies `[...]` in nats."""
        return losses.entropy(self.logits(observations))


def _neighbourhoods(features: jax.Array) -> jax.Array:
    """Each cell's 3 x 3 neighbourhood, 0 outside: `[..., H, W, C]` to `[..., H, W, 9 C]`."""
    height, width = features.shape[-3:-1]
    edge = [(0, 0)] * (features.ndim - 3)
    padded = jnp.pad(features, [*edge, (1, 1), (1, 1), (0, 0)])
    return jnp.concatenate(
        [
            padded[..., row : row + height, column : column + width, :]
            for row in range(3)
            for column in range(3)
        ],
        axis=-1,
    )
