"""Parts of a decoder layer: norm and attention."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxpo.lm.model._products import wide_einsum, with_rank_of


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis, in float32; keeps x's dtype."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    scale = with_rank_of(scale.astype(jnp.float32), x)
    return (wide * inverse * scale).astype(x.dtype)


def positions_of(mask: jax.Array) -> jax.Array:
    """Positions `[..., T]` of tokens that are real where `mask` is True, counted from 0.

    They do not depend on where the padding stands. Padding gets the position of the token before.
    """
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def causal_mask(mask: jax.Array) -> jax.Array:
    """Which keys `[B, 1, T, T]` each query sees: the real tokens up to itself, and itself.

    Padding sees itself, so that no row is empty: a softmax over nothing would be NaN.
    """
    length = mask.shape[-1]
    before = jnp.tril(jnp.ones((1, length, length), bool))
    return ((before & mask[:, None, :]) | jnp.eye(length, dtype=bool)[None])[:, None]


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """`jax.nn.dot_product_attention`, which mixes dtypes that JAX's own strict mode refuses."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, mask=mask)


class KeysAndValues(NamedTuple):
    """Keys and values in the order in which the products of decoding read them.

    Attributes:
      keys: `[..., kv_heads, head_dim, T]`.
      values: `[..., kv_heads, T, head_dim]`.
    """

    keys: jax.Array
    values: jax.Array


def for_decoding(keys: jax.Array, values: jax.Array) -> KeysAndValues:
    """Reorders keys and values `[..., T, kv_heads, head_dim]`."""
    return KeysAndValues(jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -3, -2))


def shared_prefix_attention(
    query: jax.Array,
    prompt: KeysAndValues,
    own: KeysAndValues,
    prompt_mask: jax.Array,
    own_mask: jax.Array,
) -> jax.Array:
    """Attention of one token of each sample to its prompt and to its own tokens so far.

    One softmax over both. The group reads one copy of its prompt's keys and values, the samples
    standing as rows of one matrix product. `jax.nn.dot_product_attention` could give both parts
    and their log-sum-exps, but rounds those to bfloat16, too coarse to merge by.

    Args:
      query: `[P, N, heads, head_dim]`.
      prompt: Of S tokens, leading axis P.
      own: Of T tokens, leading axes P, N.
      prompt_mask: `[P, S]` boolean, True at real tokens, at least one for each prompt.
      own_mask: `[T]` boolean, True at tokens that exist.

    Returns:
      `[P, N, heads, head_dim]`.
    """
    P, N, heads, width = query.shape
    kv_heads = prompt.keys.shape[1]
    grouped = query.reshape(P, N, kv_heads, heads // kv_heads, width)
    to_prompt = wide_einsum("pnkgd,pkds->pkngs", grouped, prompt.keys)
    to_own = wide_einsum("pnkgd,pnkdt->pnkgt", grouped, own.keys)
    to_prompt = jnp.where(prompt_mask[:, None, None, None], to_prompt * width**-0.5, -jnp.inf)
    to_own = jnp.where(with_rank_of(own_mask, to_own), to_own * width**-0.5, -jnp.inf)

    # Shaped as `to_prompt`, whose maximum is finite since no prompt is empty.
    largest = jnp.maximum(jnp.max(to_prompt, axis=-1), jnp.swapaxes(jnp.max(to_own, axis=-1), 1, 2))
    to_prompt = jnp.exp(to_prompt - largest[..., None])
    to_own = jnp.exp(to_own - jnp.swapaxes(largest, 1, 2)[..., None])
    total = jnp.swapaxes(jnp.sum(to_prompt, axis=-1), 1, 2) + jnp.sum(to_own, axis=-1)
    to_prompt, to_own = to_prompt.astype(query.dtype), to_own.astype(query.dtype)
    attended = wide_einsum("pkngs,pksd->pnkgd", to_prompt, prompt.values)
    attended += wide_einsum("pnkgt,pnktd->pnkgd", to_own, own.values)
    return (attended / total[..., None]).astype(query.dtype).reshape(query.shape)
