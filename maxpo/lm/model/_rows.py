"""Moving samples together: fewer rows once many samples have come to an end.

A batch lies in rows of samples that share their prompt: P groups of N at first, and a row for each
sample that goes on as soon as this costs less. Rows stay in the shard of the batch that they come
from, and all shards have equally many.
"""

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
      total: Samples in a shard at first.
    """

    places: np.ndarray
    total: int

    @property
    def flat(self) -> np.ndarray:
        """`[D, R / D * W]`, the places."""
        return self.places.reshape(len(self.places), -1)

    def cost(self, prompt: int, room: int) -> int:
        """What a step costs a shard where prompts have so many tokens and caches so much room."""
        _, count, width = self.places.shape
        return _cost(count, width, prompt, room)


class Move(NamedTuple):
    """From some rows to others, of one sample each.

    Attributes:
      rows: The new ones.
      rows_from: `[D, R' / D]` int32, a row with the same prompt among the old ones of the shard.
      samples_from: `[D, R' / D, 1]` int32, the place of each sample among the old `R / D * W`.
      is_empty: `[R', 1]` boolean, True where no sample is.
    """

    rows: Rows
    rows_from: np.ndarray
    samples_from: np.ndarray
    is_empty: np.ndarray


def of_groups(prompts: int, group_size: int, shards: int) -> Rows:
    """The rows of a whole batch: its groups."""
    total = prompts * group_size // shards
    places = np.tile(np.arange(total, dtype=np.int32), (shards, 1))
    return Rows(places.reshape(shards, -1, group_size), total)


def enough(rows: Rows, alive: int) -> int:
    """How few samples may go on before it is worth a look whether fewer rows will do."""
    slots = rows.places.size
    return 0 if slots <= _FEWEST * len(rows.places) else min(alive, slots) // 2


def move(rows: Rows, alive: np.ndarray, *, prompt: int, room: int) -> Move | None:
    """To a row for each sample that goes on; None if that does not pay.

    Args:
      rows: Those that are.
      alive: `[R, W]` boolean, samples that go on.
      prompt: S, tokens in a prompt.
      room: Tokens in the cache of a sample.
    """
    alive = alive.reshape(len(rows.places), -1)
    count = _row_count(int(alive.sum(axis=1).max()), rows.total)
    if _cost(count, 1, prompt, room) > _LEAST_GAIN * rows.cost(prompt, room):
        return None
    # An empty row is a copy of something that is not looked at.
    samples_from = np.zeros((len(alive), count), np.int32)
    places = np.full(samples_from.shape, rows.total, np.int32)
    for shard, of_shard in enumerate(alive):
        (kept,) = np.nonzero(of_shard)
        samples_from[shard, : len(kept)] = kept
        places[shard, : len(kept)] = rows.flat[shard, kept]
    return Move(
        rows._replace(places=places[..., None]),
        samples_from // np.int32(rows.places.shape[2]),
        samples_from[..., None],
        (places == rows.total).reshape(-1, 1),
    )


def _cost(count: int, width: int, prompt: int, room: int) -> int:
    return count * (prompt + width * (room + _SAMPLE_COST))


def _row_count(alive: int, total: int) -> int:
    """Rows of a shard: as many as samples, halved while enough are left, for few programs."""
    count = total
    while -(-count // 2) >= max(alive, _FEWEST):
        count = -(-count // 2)
    return count


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
