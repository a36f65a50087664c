"""A softmax policy over a finite set of actions."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo import losses

__all__ = ["Categorical"]


class Categorical(nnx.Module):
    """Softmax over `num_arms` actions, from a perceptron on the observation.

    Without hidden layers it is a linear softmax, and on one-hot observations the tabular one. The
    last layer starts at zero, so the policy starts out uniform.
    """

    def __init__(
        self, num_features: int, num_arms: int, *, hidden: Sequence[int] = (), rngs: nnx.Rngs
    ):
        widths = (num_features, *hidden)
        self.hidden = nnx.List(
            nnx.Linear(before, after, rngs=rngs) for before, after in itertools.pairwise(widths)
        )
        self.head = nnx.Linear(
            widths[-1],
            num_arms,
            use_bias=bool(hidden),
            kernel_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )

    def logits(self, observations: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities `[..., A]`."""
        for layer in self.hidden:
            observations = jnp.tanh(layer(observations))
        return self.head(observations)

    def sample(self, key: jax.Array, observations: jax.Array, group_size: int) -> jax.Array:
        """Actions `[..., N]`, int32."""
        logits = self.logits(observations)
        # By inversion of the distribution function: one random number a sample, not one an arm.
        cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
        uniform = jax.random.uniform(key, (*logits.shape[:-1], group_size))
        below = cumulative[..., None, :] <= uniform[..., :, None] * cumulative[..., None, -1:]
        return jnp.sum(below, axis=-1, dtype=jnp.int32)

    def log_prob(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        """Log-probabilities `[..., N]`."""
        log_probs = jax.nn.log_softmax(self.logits(observations))
        return jnp.take_along_axis(log_probs, actions, axis=-1)

    def entropy(self, observations: jax.Array) -> jax.Array:
        """Entropies `[...]` in nats."""
        return losses.entropy(self.logits(observations))
