"""Drawing a token from logits."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def truncate(logits: jax.Array, *, top_k: int | None, top_p: ArrayLike | None) -> jax.Array:
    """Sets the logits `[..., V]` of unlikely tokens to -inf: below `top_k`, then beyond `top_p`."""
    if top_k is not None:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The likeliest token stays even where rounding leaves nothing before it to compare.
        kept = (before < top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def sample(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Tokens `[...]`, int32, by inverting the distribution function at `uniform` in [0, 1)."""
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    # Parallel sums are not monotone to the last bit: without the mask an impossible token could
    # seem to have a chance of one rounding, and be drawn once in a million.
    reached = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    beyond = reached > uniform[..., None] * jnp.max(reached, axis=-1, keepdims=True)
    indices = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.min(jnp.where(beyond, indices, logits.shape[-1]), axis=-1)
