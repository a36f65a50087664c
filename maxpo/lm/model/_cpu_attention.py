"""Attention with a gradient of its own, for XLA's CPU backend.

That backend multiplies fastest where the first factor is contracted over its last axis, and
transposes factors in memory that stand otherwise. Left to autodiff these are the weights, one
number for each query and key. Here they are queries, keys and slopes, a head wide.
"""

import jax
import jax.numpy as jnp

from maxpo.lm.model._products import wide_einsum

__all__ = ["cpu_attention"]


@jax.custom_vjp
def cpu_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention, computed in float32.

    Args:
      query: `[B, T, heads, head_dim]`.
      key: `[B, S, kv_heads, head_dim]`.
      value: As `key`.
      mask: `[B, 1, T, S]` boolean, True at keys that a query sees, at least one for each.

    Returns:
      As `query`.
    """
    return _forward(query, key, value, mask)[0]


def _forward(query, key, value, mask):  # type: ignore[no-untyped-def]
    queries = _by_heads(query, key.shape[2])
    keys, values = (jnp.swapaxes(x, 1, 2) for x in (key, value))
    scores = wide_einsum("bkgtd,bksd->bkgts", queries, keys) * query.shape[-1] ** -0.5
    scores = jnp.where(mask[:, :, None], scores, -jnp.inf)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    # The results are divided, not the weights, which are more.
    total = jnp.sum(weights, axis=-1, keepdims=True)
    attended = wide_einsum("bkgts,bksd->bkgtd", weights, values) / total
    result = _by_tokens(attended).astype(query.dtype)
    return result, (queries, keys, values, weights, total, attended)


def _backward(saved, of_result):  # type: ignore[no-untyped-def]
    """With `p` the softmax, `o = p v`: dL/dv = p^T do, dL/dscores = p (do v^T - do o)."""
    queries, keys, values, weights, total, attended = saved
    slope = _by_heads(of_result, keys.shape[1]).astype(jnp.float32) / total
    drop = jnp.sum(slope * attended, axis=-1, keepdims=True)
    of_value = wide_einsum("bkgtd,bkgts->bkds", slope, weights)
    of_scores = weights * (wide_einsum("bkgtd,bksd->bkgts", slope, values) - drop)
    scale = queries.shape[-1] ** -0.5
    of_query = wide_einsum("bkgts,bksd->bkgtd", of_scores, keys) * scale
    of_key = wide_einsum("bkgtd,bkgts->bkds", queries, of_scores) * scale
    of_key, of_value = (jnp.transpose(x, (0, 3, 1, 2)) for x in (of_key, of_value))
    gradients = (_by_tokens(of_query), of_key, of_value)
    return *(x.astype(of_result.dtype) for x in gradients), None


cpu_attention.defvjp(_forward, _backward)


def _by_heads(x: jax.Array, kv_heads: int) -> jax.Array:
    """`[B, T, heads, head_dim]` to `[B, kv_heads, G, T, head_dim]`."""
    B, T, heads, width = x.shape
    return jnp.transpose(x.reshape(B, T, kv_heads, heads // kv_heads, width), (0, 2, 3, 1, 4))


def _by_tokens(x: jax.Array) -> jax.Array:
    """`[B, kv_heads, G, T, head_dim]` to `[B, T, heads, head_dim]`."""
    B, kv_heads, group, T, width = x.shape
    return jnp.transpose(x, (0, 3, 1, 2, 4)).reshape(B, T, kv_heads * group, width)
