"""Tokens of completions without their padding: in a row, and in blocks that attention reads."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxpo.lm.model._block_attention import Pairs, PromptKeys, block_attention

__all__ = ["Blocks", "Layout", "Row", "make_layouts", "packed_attention", "predicted"]

# Tokens of a block: about a quarter of the longest completion, within these. Short blocks have less
# padding, long ones make larger products; measured on CPU with limits of 64 and 2048 tokens.
SHORTEST_BLOCK, LONGEST_BLOCK = 16, 64
CHUNK_TOKENS = 1024  # Of the blocks whose scores exist at the same time, about.


class Row(NamedTuple):
    """The tokens of B samples, one after the other, in `room` places.

    Attributes:
      sample: `[room]`, whose token each is; any where there is none.
      number: `[room]`, its number within the sample, from 0; any where there is none.
      filled: `[room]` boolean, True at the places that have a token.
    """

    sample: jax.Array
    number: jax.Array
    filled: jax.Array


class Blocks(NamedTuple):
    """The same tokens in blocks of b places, each of one sample.

    Attributes:
      token: `[blocks, b]`, the place in the row of each; any where there is none.
      filled: `[blocks, b]` boolean, True at the places that have a token.
      place: `[room]`, where each token of the row is among all `blocks * b` places.
    """

    token: jax.Array
    filled: jax.Array
    place: jax.Array


class Layout(NamedTuple):
    """Where each token is.

    Attributes:
      row: For all that is done to a token by itself.
      queries: The blocks that look, those with most before them first: alike ones share a chunk.
      keys: The blocks that are looked at, sample by sample.
      pairs: Which blocks of keys each block of queries sees.
    """

    row: Row
    queries: Blocks
    keys: Blocks
    pairs: Pairs


def make_layouts(lengths: jax.Array, *, group_size: int, longest: int, room: int) -> Layout:
    """The layouts of shards of samples that have so many tokens each.

    Args:
      lengths: `[shards, B]` int32, at most `longest`, together at most `room` in each shard.
      group_size: Samples of a prompt, which stand beside each other.
      longest: Decides the length of a block.
      room: Places of a row.

    Returns:
      Arrays with a leading axis of shards, but for `pairs.steps`, which all share.
    """
    make = partial(_layout, group_size=group_size, longest=longest, room=room)
    layout = jax.vmap(make)(lengths)
    # A loop of all shards at once, so that it needs no communication about when to stop.
    steps = jnp.max(layout.pairs.number, axis=(0, 2)) + 1
    return layout._replace(pairs=layout.pairs._replace(steps=steps))


def packed_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, prompts: PromptKeys, layout: Layout
) -> jax.Array:
    """Attention of tokens in rows to their prompts and to their own samples so far.

    Args:
      query: `[shards, room, heads, head_dim]`.
      key: `[shards, room, kv_heads, head_dim]`.
      value: As `key`.
      prompts: With a leading axis of shards.
      layout: As of `make_layouts`.

    Returns:
      As `query`.
    """
    pairs = Pairs(keys=0, number=0, prompt=0, steps=None)  # type: ignore[arg-type]
    axes = Layout(row=0, queries=0, keys=0, pairs=pairs)  # type: ignore[arg-type]
    return jax.vmap(_attention, in_axes=(0, 0, 0, 0, axes))(query, key, value, prompts, layout)


def predicted(mask: jax.Array, row: Row) -> jax.Array:
    """Which token the state of each prompt's end, one for each sample, and of a row predicts.

    Args:
      mask: `[shards, B, T]` boolean, True at real tokens.
      row: Of their tokens but for the last of each sample.

    Returns:
      `[shards, B + room]` int32, counted through the `B T` tokens of a shard; `B T` for none.
    """
    _, B, T = mask.shape
    samples = jnp.arange(B, dtype=jnp.int32)[None]
    first = jnp.where(mask[..., 0], samples * T, B * T)
    later = jnp.where(row.filled, row.sample * T + row.number + 1, B * T)
    return jnp.concatenate([first, later], axis=1)


def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, prompts: PromptKeys, layout: Layout
) -> jax.Array:
    chunks = layout.pairs.keys.shape[0]
    b = layout.queries.token.shape[1]
    (_, heads, width), kv_heads = query.shape, key.shape[1]
    filled = layout.row.filled
    queries = _unpack(layout.queries, query, filled)
    queries = queries.reshape(chunks, -1, b, kv_heads, heads // kv_heads, width)
    keys, values = (jnp.swapaxes(_unpack(layout.keys, x, filled), 1, 2) for x in (key, value))
    attended = block_attention(
        jnp.transpose(queries, (0, 1, 3, 4, 2, 5)), keys, values, prompts, layout.pairs
    )
    attended = jnp.transpose(attended, (0, 1, 4, 2, 3, 5))
    return _pack(layout.queries, attended.reshape(-1, b, heads, width)).reshape(query.shape)


def _layout(lengths: jax.Array, *, group_size: int, longest: int, room: int) -> Layout:
    """The layout of one shard, of samples `[B]`."""
    (B,) = lengths.shape
    per_sample = -(-longest // min(max(longest // 4, SHORTEST_BLOCK), LONGEST_BLOCK))
    b = -(-longest // per_sample)
    most = min(B * per_sample, (room + B * (b - 1)) // b)
    chunks = -(-most * b // CHUNK_TOKENS)
    blocks = -(-most // chunks) * chunks

    ends, starts = _cumulated(lengths)
    row = _row(ends, starts, room)
    block_ends, block_starts = _cumulated(-(-lengths // b))
    block = _row(block_ends, block_starts, blocks)
    first = starts[block.sample] + block.number * b
    token = first[:, None] + jnp.arange(b, dtype=jnp.int32)[None]
    filled = block.filled[:, None] & (token < ends[block.sample][:, None])
    block_of_token, within = block_starts[row.sample] + row.number // b, row.number % b
    keys = Blocks(jnp.minimum(token, room - 1), filled, block_of_token * b + within)

    order = jnp.argsort(jnp.where(block.filled, -block.number, 1), stable=True).astype(jnp.int32)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(blocks, dtype=jnp.int32))
    queries = Blocks(keys.token[order], filled[order], rank[block_of_token] * b + within)
    order = order.reshape(chunks, -1)
    number, prompt = block.number[order], block.sample[order] // group_size
    return Layout(row, queries, keys, Pairs(order, number, prompt, jnp.max(number, axis=1) + 1))


def _unpack(blocks: Blocks, row: jax.Array, filled: jax.Array) -> jax.Array:
    """`[room, ...]` to `[blocks, b, ...]`."""
    taken = _take(row, blocks.token.ravel(), blocks.place, filled)
    return taken.reshape(*blocks.token.shape, *row.shape[1:])


def _pack(blocks: Blocks, values: jax.Array) -> jax.Array:
    """`[blocks, b, ...]` to `[room, ...]`."""
    flat = values.reshape(-1, *values.shape[2:])
    return _take(flat, blocks.place, blocks.token.ravel(), blocks.filled.ravel())


@jax.custom_vjp
def _take(x: jax.Array, there: jax.Array, back: jax.Array, is_taken: jax.Array) -> jax.Array:
    """`x[there]`, whose gradient is taken too, where autodiff would add up row by row.

    Args:
      x: `[m, ...]`.
      there: `[n]`, the row of `x` that each row of the result is.
      back: `[m]`, the row of the result that each row of `x` has become.
      is_taken: `[m]` boolean, False at rows of `x` whose copies mean nothing.
    """
    return x[there]


def _take_forward(x, there, back, is_taken):  # type: ignore[no-untyped-def]
    return x[there], (back, is_taken)


def _take_backward(saved, of_result):  # type: ignore[no-untyped-def]
    back, is_taken = saved
    taken = is_taken.reshape(-1, *[1] * (of_result.ndim - 1))
    return jnp.where(taken, of_result[back], 0), None, None, None


_take.defvjp(_take_forward, _take_backward)


def _cumulated(lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where things of so many parts end and start, one after the other."""
    ends = jnp.cumsum(lengths, dtype=jnp.int32)
    return ends, ends - lengths


def _row(ends: jax.Array, starts: jax.Array, room: int) -> Row:
    places = jnp.arange(room, dtype=jnp.int32)
    sample = jnp.searchsorted(ends, places, side="right").astype(jnp.int32)
    sample = jnp.minimum(sample, len(ends) - 1)
    filled = places < ends[-1]
    return Row(sample, jnp.where(filled, places - starts[sample], 0), filled)
