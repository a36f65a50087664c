"""One layer of the decoder, as functions of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxpo import parallel
from maxpo.lm.model import _attention, _rotary
from maxpo.lm.model._cpu_attention import cpu_attention
from maxpo.lm.model._products import wide_einsum, with_rank_of
from maxpo.lm.model._rotary import Rotation
from maxpo.lm.model.config import TransformerConfig


class Adapter(NamedTuple):
    """A change of low rank to a matrix, of one layer or of all with a leading axis L.

    Attributes:
      a: `[D, rank]`.
      b: `[rank, ...]`, scaled, with the output axes of the matrix.
    """

    a: jax.Array
    b: jax.Array


class LayerWeights(NamedTuple):
    """The arrays of one layer, or of all with a leading axis L.

    Query heads stand with the key and value head that they share, so that a slice of the head axis
    is a whole attention of its own. G is the number of query heads for each key head.

    Attributes:
      attention_norm: `[D]`.
      qkv: `[D, kv_heads, G + 2, head_dim]`: G queries, then the key and the value.
      qkv_bias: `[kv_heads, G + 2, head_dim]` or None.
      query_norm: `[head_dim]` or None.
      key_norm: `[head_dim]` or None.
      attention_out: `[heads * head_dim, D]`.
      mlp_norm: `[D]`.
      gate: `[D, mlp]`.
      up: `[D, mlp]`, what the gate multiplies.
      down: `[mlp, D]`.
      adapters: Changes to matrices, by their names.
    """

    attention_norm: jax.Array
    qkv: jax.Array
    qkv_bias: jax.Array | None
    query_norm: jax.Array | None
    key_norm: jax.Array | None
    attention_out: jax.Array
    mlp_norm: jax.Array
    gate: jax.Array
    up: jax.Array
    down: jax.Array
    adapters: Mapping[str, Adapter]


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` in the dtype of `x`, with a gradient of the kernel that adds up in float32.

    Args:
      x: `[..., D]`.
      kernel: `[D, F]`, cast to the dtype of `x`.
    """
    return x @ kernel.astype(x.dtype)


def _matmul_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(
    saved: tuple[jax.Array, jax.Array], of_result: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, rows_of_result = x.reshape(-1, x.shape[-1]), of_result.reshape(-1, of_result.shape[-1])

    # XLA's CPU backend transposes the first factor in memory: let that be the narrow one. Left to
    # autodiff it is the wide one, and the transposition takes longer than the product.
    narrow_input = kernel.shape[0] <= kernel.shape[1]
    if narrow_input:
        of_kernel = wide_einsum("td,tf->df", rows, rows_of_result)
    else:
        of_kernel = wide_einsum("tf,td->fd", rows_of_result, rows)
        if jax.default_backend() == "cpu":
            # Else the compiler turns the product around, to save the transposition of the result.
            of_kernel = jax.lax.optimization_barrier(of_kernel)
        of_kernel = of_kernel.T
    return of_result @ kernel.astype(x.dtype).T, of_kernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def product(x: jax.Array, weights: LayerWeights, name: str) -> jax.Array:
    """`x` `[..., D]` times a matrix of a layer and its adapter, output axes as one."""
    kernel: jax.Array = getattr(weights, name)
    result = matmul(x, kernel.reshape(kernel.shape[0], -1))
    if (adapter := weights.adapters.get(name)) is None:
        return result
    rank = adapter.b.shape[0]
    return result + matmul(matmul(x, adapter.a), adapter.b.reshape(rank, -1))


def project(
    config: TransformerConfig, weights: LayerWeights, states: jax.Array, rotation: Rotation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries and keys, and values, of a layer.

    Args:
      config: Shape of the model.
      weights: The arrays of this layer.
      states: `[..., D]`.
      rotation: `[..., head_dim / 2]`, of the tokens' positions.

    Returns:
      Queries `[..., heads, head_dim]`, keys and values `[..., kv_heads, head_dim]`.
    """
    x = _attention.rms_norm(states, weights.attention_norm, config.norm_epsilon)
    heads = product(x, weights, "qkv").reshape(*x.shape[:-1], *weights.qkv.shape[1:])
    if weights.qkv_bias is not None:
        heads += with_rank_of(weights.qkv_bias.astype(x.dtype), heads)
    query, key, value = heads[..., :-2, :], heads[..., -2, :], heads[..., -1, :]
    query = query.reshape(*x.shape[:-1], config.heads, config.head_width)
    if weights.query_norm is not None:
        query = _attention.rms_norm(query, weights.query_norm, config.norm_epsilon)
    if weights.key_norm is not None:
        key = _attention.rms_norm(key, weights.key_norm, config.norm_epsilon)
    return _rotary.rotate(query, rotation), _rotary.rotate(key, rotation), value


def attend(
    config: TransformerConfig, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention of a layer that may be differentiated; arguments as `_attention.attention`."""
    # Not without `remat`: it gains less there, and rounds otherwise than the runs that there are.
    if config.remat and jax.default_backend() == "cpu":
        return cpu_attention(query, key, value, mask)
    return _attention.attention(query, key, value, mask)


def finish(
    config: TransformerConfig, weights: LayerWeights, states: jax.Array, attended: jax.Array
) -> jax.Array:
    """What a layer does after attention: adds its output, then that of the SwiGLU.

    Args:
      config: Shape of the model.
      weights: The arrays of this layer.
      states: `[..., D]`, the input of the layer.
      attended: `[..., heads, head_dim]`.

    Returns:
      `[..., D]`, the output of the layer.
    """
    merged = attended.reshape(*states.shape[:-1], -1)
    states = states + product(merged, weights, "attention_out")
    x = _attention.rms_norm(states, weights.mlp_norm, config.norm_epsilon)
    gated = jax.nn.silu(product(x, weights, "gate")) * product(x, weights, "up")
    # Else a mesh whose matrices are cut over `data` may spread the width instead of the batch.
    return parallel.constrain_batch(states + product(gated, weights, "down"))


def last_token(states: jax.Array, mask: jax.Array) -> jax.Array:
    """The states `[P, D]` of the last real token of each row of `[P, T, D]`."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
