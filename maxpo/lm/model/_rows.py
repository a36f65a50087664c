"""Moving samples together: fewer and narrower rows once many samples have come to an end.

A batch lies in rows of samples that share their prompt: P groups of N at first, a row for each
sample at last. What is in between reads a prompt once for several samples. Rows stay in the shard
of the batch that they come from, and all shards have equally many.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What a sample costs beside attention, as so many tokens attended to: less than it is, so that no
# cache grows much by copies of prompts.
_SAMPLE_COST = 256
# A move pays if it saves a fifth.
_LEAST_GAIN = 0.8
# Fewer samples than these take no less time for a step.
_FEWEST = 4


class Rows(NamedTuple):
    """Where the samples of a batch lie; on the host.

    Attributes:
      places: `[D, R / D, W]` int32, the number of each sample among those of its shard, of D.
        Beyond them all: nothing lies there.
      group_size: N, samples of a prompt.
      total: Samples in a shard.
    """

    places: np.ndarray
    group_size: int
    total: int

    @property
    def flat(self) -> np.ndarray:
        """`[D, R / D * W]`, the places."""
        return self.places.reshape(len(self.places), -1)

    @property
    def slots(self) -> int:
        """R W."""
        return self.places.size

    def cost(self, prompt: int, room: int) -> int:
        """What a step costs where prompts have so many tokens and caches so much room."""
        _, count, width = self.places.shape
        return _cost(count, width, prompt, room)


class Move(NamedTuple):
    """From some rows to others.

    Attributes:
      rows: The new ones.
      rows_from: `[D, R' / D]` int32, a row with the same prompt among the old ones of the shard.
      samples_from: `[D, R' / D, W']` int32, the place of each sample among the old `R / D * W`.
      is_empty: `[R', W']` boolean, True where no sample is.
    """

    rows: Rows
    rows_from: np.ndarray
    samples_from: np.ndarray
    is_empty: np.ndarray


def of_groups(prompts: int, group_size: int, shards: int) -> Rows:
    """The rows of a whole batch: its groups."""
    total = prompts * group_size // shards
    places = np.broadcast_to(np.arange(total, dtype=np.int32), (shards, total))
    return Rows(places.reshape(shards, -1, group_size), group_size, total)


def enough(rows: Rows, alive: int) -> int:
    """How few samples may go on before it is worth a look whether fewer rows will do."""
    shards = len(rows.places)
    return 0 if rows.slots <= _FEWEST * shards else min(alive, rows.slots) // 2


def move(rows: Rows, alive: np.ndarray, *, prompt: int, room: int) -> Move | None:
    """The cheapest rows for the samples that go on; None if those that are do about as well.

    Args:
      rows: Those that are.
      alive: `[R, W]` boolean, samples that go on.
      prompt: S, tokens in a prompt.
      room: Tokens in the cache of a sample.
    """
    alive = alive.reshape(len(rows.places), -1)
    kept = [np.flatnonzero(row) for row in alive]
    groups = [
        [samples[owner == group] for group in np.unique(owner)]
        for samples, owner in (
            (samples, places[samples] // rows.group_size)
            for samples, places in zip(kept, rows.flat, strict=True)
        )
    ]
    widths = [4**i for i in range(8) if 4**i <= rows.places.shape[2]]
    counts = {width: _row_count(groups, width, rows.total) for width in widths}
    costs = {width: _cost(count, width, prompt, room) for width, count in counts.items()}
    width = min(costs, key=lambda width: costs[width])
    if costs[width] > _LEAST_GAIN * rows.cost(prompt, room):
        return None
    return _laid_out(rows, groups, counts[width], width)


def _cost(count: int, width: int, prompt: int, room: int) -> int:
    return count * (prompt + width * (room + _SAMPLE_COST))


def _row_count(groups: list[list[np.ndarray]], width: int, total: int) -> int:
    """Rows of each shard: what the fullest needs, made one of few numbers, for few programs."""
    needed = max(sum(-(-len(group) // width) for group in shard) for shard in groups)
    needed = max(needed, -(-_FEWEST // width))
    count = -(-total // width)
    halvings = int(math.log2(count / needed)) if needed < count else 0
    return max(needed, -(-count // 2**halvings))


def _laid_out(rows: Rows, groups: list[list[np.ndarray]], count: int, width: int) -> Move:
    shape = (len(groups), count, width)
    samples_from, is_empty = np.zeros(shape, np.int32), np.ones(shape, bool)
    for number, shard in enumerate(groups):
        parts = [group[i : i + width] for group in shard for i in range(0, len(group), width)]
        for row, part in enumerate(parts):
            samples_from[number, row, : len(part)] = part
            is_empty[number, row, : len(part)] = False
    # An empty slot of a row is a copy of something that is not looked at.
    flat = samples_from.reshape(len(groups), -1)
    places = np.take_along_axis(rows.flat, flat, axis=1).reshape(shape)
    places = np.where(is_empty, np.int32(rows.total), places)
    rows_from = samples_from[..., 0] // np.int32(rows.places.shape[2])
    return Move(rows._replace(places=places), rows_from, samples_from, is_empty.reshape(-1, width))


@partial(jax.jit, static_argnames="leading")
def taken(array: jax.Array, source: np.ndarray, *, leading: int) -> jax.Array:
    """Rows or samples of an array from their places in the old one, shard by shard.

    Args:
      array: `[R, ...]` or `[R, W, ...]`.
      source: `[D, R' / D]` or `[D, R' / D, W']`.
      leading: How many axes of the array the places count through: 1 or 2.
    """
    rest = array.shape[leading:]
    by_shard = array.reshape(source.shape[0], -1, *rest)
    flat = source.reshape(source.shape[0], -1)
    found = jax.vmap(lambda rows, places: jnp.take(rows, places, axis=0, mode="clip"))(
        by_shard, flat
    )
    return found.reshape(-1, *source.shape[2:], *rest)


@partial(jax.jit, static_argnames=("axis", "length"))
def grown(array: jax.Array, *, axis: int, length: int) -> jax.Array:
    """The array with zeros behind its entries, up to a length of one axis."""
    behind = [(0, 0)] * array.ndim
    behind[axis] = (0, length - array.shape[axis])
    return jnp.pad(array, behind)


@partial(jax.jit, donate_argnums=0)
def put_back(whole: jax.Array, samples: jax.Array, places: np.ndarray) -> jax.Array:
    """The array `[P, N, T]` with samples `[R, W, T]` at their places `[D, R / D * W]`."""
    by_shard = whole.reshape(len(places), -1, whole.shape[-1])
    rows = samples.reshape(len(places), -1, whole.shape[-1])
    written = jax.vmap(lambda x, where, y: x.at[where].set(y, mode="drop"))(by_shard, places, rows)
    return written.reshape(whole.shape)
