"""Causal attention of completions that lie in blocks, each sample in as few as its length needs.

Scores exist for one chunk of blocks against one block of keys at a time, in the forward and in the
backward pass, and only for pairs of blocks of one sample: time follows the squares of the lengths
that there are, and no array is as long as the longest completion. The softmax is put together from
its parts as in "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness"
(https://arxiv.org/abs/2205.14135).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxpo.lm.model._products import wide_einsum

__all__ = ["Pairs", "PromptKeys", "block_attention"]


class Pairs(NamedTuple):
    """Which blocks of keys each block of queries sees, beside its prompt.

    Queries are cut into chunks of C blocks, keys lie in the order of samples: number n of a sample
    stands n places after its first.

    Attributes:
      keys: `[chunks, C]`, the place of the block among those of the keys.
      number: `[chunks, C]`, its number within its sample, from 0. It sees so many blocks before it,
        and of itself what is not later.
      prompt: `[chunks, C]`, the prompt that it sees.
      steps: `[chunks]`, how many blocks of keys the longest of a chunk sees.
    """

    keys: jax.Array
    number: jax.Array
    prompt: jax.Array
    steps: jax.Array


class PromptKeys(NamedTuple):
    """What completions see of P prompts.

    Attributes:
      keys: `[P, kv_heads, S, head_dim]`.
      values: As the keys.
      mask: `[P, S]` boolean, True at real tokens, at least one for each prompt.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


@jax.custom_vjp
def block_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, prompts: PromptKeys, pairs: Pairs
) -> jax.Array:
    """Attention of each token to its prompt and to its own sample so far, with one softmax.

    Args:
      query: `[chunks, C, kv_heads, G, b, head_dim]`, blocks of b tokens.
      key: `[K, kv_heads, b, head_dim]`.
      value: As `key`.
      prompts: Theirs.
      pairs: What sees what.

    Returns:
      As `query`. Finite where a block has no tokens, and meaningless there.
    """
    return _forward(query, key, value, prompts, pairs)[0]


class _Softmax(NamedTuple):
    """A softmax over a part of the keys, times the values.

    Attributes:
      largest: Of the scores.
      total: Of `exp(score - largest)`.
      weighted: Values, each times that.
    """

    largest: jax.Array
    total: jax.Array
    weighted: jax.Array


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, prompts: PromptKeys, pairs: Pairs
) -> tuple[jax.Array, jax.Array]:
    """The result, and the logarithm of each softmax's denominator."""

    def attend(chunk: tuple[jax.Array, Pairs]) -> tuple[jax.Array, jax.Array]:
        queries, of_chunk = chunk
        none = jnp.full(queries.shape[:-1], -jnp.inf, jnp.float32)
        empty = _Softmax(none, jnp.zeros_like(none), jnp.zeros(queries.shape, jnp.float32))
        keys, values, seen = _of_prompts(prompts, of_chunk)

        def add(offset: jax.Array, state: _Softmax) -> _Softmax:
            places, seen = _blocks(of_chunk, offset, queries.shape[-2])
            return _added(state, queries, key[places], value[places], seen)

        start = _added(empty, queries, keys, values, seen)
        found = jax.lax.fori_loop(jnp.int32(0), of_chunk.steps, add, start)
        attended = (found.weighted / found.total[..., None]).astype(queries.dtype)
        return attended, found.largest + jnp.log(found.total)

    return jax.lax.map(attend, (query, pairs))


def _backward(saved, of_result):  # type: ignore[no-untyped-def]
    """With `p` the softmax, `o = p v`: dL/dv = p^T do, dL/dscores = p (do v^T - do o)."""
    query, key, value, prompts, pairs, attended, normalizer = saved

    def step(total, chunk):  # type: ignore[no-untyped-def]
        queries, of_chunk, result, lse, slope = chunk
        drop = jnp.sum(slope.astype(jnp.float32) * result.astype(jnp.float32), axis=-1)
        keys, values, seen = _of_prompts(prompts, of_chunk)
        of_queries, *of_prompts = _slopes(queries, keys, values, seen, lse, slope, drop)
        of_own, prompt_total = total
        prompt_total = _scattered(prompt_total, of_chunk.prompt, of_prompts)

        def add(offset, state):  # type: ignore[no-untyped-def]
            of_queries, of_own = state
            places, seen = _blocks(of_chunk, offset, queries.shape[-2])
            more, *of_blocks = _slopes(queries, key[places], value[places], seen, lse, slope, drop)
            return of_queries + more, _scattered(of_own, places, of_blocks)

        start = (of_queries, of_own)
        of_queries, of_own = jax.lax.fori_loop(jnp.int32(0), of_chunk.steps, add, start)
        return (of_own, prompt_total), of_queries.astype(queries.dtype)

    def zeros(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(x.shape, jnp.float32), jnp.zeros(x.shape, jnp.float32)

    start = (zeros(key), zeros(prompts.keys))
    (of_own, of_prompts), of_query = jax.lax.scan(
        step, start, (query, pairs, attended, normalizer, of_result)
    )
    of_own, of_prompts = ([x.astype(key.dtype) for x in parts] for parts in (of_own, of_prompts))
    return of_query, *of_own, PromptKeys(*of_prompts, None), None


def _block_attention_forward(query, key, value, prompts, pairs):  # type: ignore[no-untyped-def]
    attended, normalizer = _forward(query, key, value, prompts, pairs)
    return attended, (query, key, value, prompts, pairs, attended, normalizer)


block_attention.defvjp(_block_attention_forward, _backward)


def _of_prompts(prompts: PromptKeys, of_chunk: Pairs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys and values of the prompt of each block, and which of them are real."""
    keys, values, mask = (x[of_chunk.prompt] for x in prompts)
    return keys, values, mask[:, None, None, None]


def _blocks(of_chunk: Pairs, offset: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Places of the blocks that stand `offset` before, and which of their tokens are seen."""
    exists = (of_chunk.number >= offset)[:, None, None, None, None]
    past = jnp.tril(jnp.ones((1, 1, 1, length, length), bool)) | (offset > 0)
    return jnp.maximum(of_chunk.keys - offset, 0), exists & past


def _scores(query: jax.Array, key: jax.Array, seen: jax.Array) -> jax.Array:
    scores = wide_einsum("ckgqd,cksd->ckgqs", query, key) * query.shape[-1] ** -0.5
    return jnp.where(seen, scores, -jnp.inf)


def _added(
    state: _Softmax, query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array
) -> _Softmax:
    """With further keys `[C, kv_heads, s, head_dim]`, seen where `[C, 1, 1, q or 1, s]` says so."""
    scores = _scores(query, key, seen)
    largest = jnp.maximum(state.largest, jnp.max(scores, axis=-1))
    weights, before = jnp.exp(scores - largest[..., None]), jnp.exp(state.largest - largest)
    weighted = wide_einsum("ckgqs,cksd->ckgqd", weights.astype(query.dtype), value)
    return _Softmax(
        largest,
        before * state.total + jnp.sum(weights, axis=-1),
        before[..., None] * state.weighted + weighted,
    )


def _slopes(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    lse: jax.Array,
    slope: jax.Array,
    drop: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of queries, keys and values, float32."""
    weights = jnp.exp(_scores(query, key, seen) - lse[..., None])
    of_value = wide_einsum("ckgqs,ckgqd->cksd", weights.astype(query.dtype), slope)
    of_scores = weights * (wide_einsum("ckgqd,cksd->ckgqs", slope, value) - drop[..., None])
    of_scores = (of_scores * query.shape[-1] ** -0.5).astype(query.dtype)
    of_query = wide_einsum("ckgqs,cksd->ckgqd", of_scores, key)
    return of_query, wide_einsum("ckgqs,ckgqd->cksd", of_scores, query), of_value


def _scattered(total, places, parts):  # type: ignore[no-untyped-def]
    return tuple(x.at[places].add(part) for x, part in zip(total, parts, strict=True))
