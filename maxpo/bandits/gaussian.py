"""A one-dimensional Gaussian policy with a trainable mean."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["Gaussian"]


class Gaussian(nnx.Module):
    """Normal distribution with mean theta, its one parameter, and a fixed standard deviation.

    It looks at no observation: of those only the leading axes count.
    """

    def __init__(self, mean: float, std: float):
        self.mean = nnx.Param(jnp.float32(mean))
        self.std = std

    def sample(self, key: jax.Array, observations: jax.Array, group_size: int) -> jax.Array:
        """Actions `[..., N]`."""
        noise = jax.random.normal(key, (*observations.shape[:-1], group_size))
        return jax.lax.stop_gradient(self.mean[...] + self.std * noise)

    def log_prob(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        """Log-densities `[..., N]`."""
        del observations
        standard = (actions - self.mean[...]) / self.std
        return -0.5 * standard**2 - math.log(self.std * math.sqrt(2 * math.pi))

    def entropy(self, observations: jax.Array) -> jax.Array:
        """Differential entropies `[...]` in nats: the same constant everywhere."""
        value = math.log(self.std * math.sqrt(2 * math.pi * math.e))
        return jnp.full(observations.shape[:-1], value)
