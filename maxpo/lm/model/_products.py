"""Products of narrow numbers that add up in float32, and of arrays of different rank."""

import jax
import jax.numpy as jnp


def wide_einsum(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`einsum(axes, x, y)` in float32, whatever the dtype of the factors."""
    if jax.default_backend() == "cpu":
        # XLA's CPU backend knows bfloat16 x bfloat16 = float32 for some shapes only. Products of
        # two bfloat16 are exact in float32, so casting first changes nothing.
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def with_rank_of(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` with leading axes of size 1: JAX's strict mode adds none by itself."""
    return x.reshape((1,) * (other.ndim - x.ndim) + x.shape)
