"""How the groups of a step are packed: which of them meet, and the room that their tokens need.

The room of `maxpo.lm.model.policy.WithPacking` is a shape, so a program is compiled for each: it is
one of few, and the same for all devices and micro-batches. It is decided on the host, from what
every process has.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from maxpo import parallel

__all__ = ["Packing", "make_packing", "room_for", "shuffled"]

# From one room to the next: less than a quarter of the places is empty beside those that one part
# of a batch has fewer than another. Sums of lengths move little from step to step, so that one or
# two of the 16 programs serve for long. Equal steps would leave short batches emptier than long
# ones.
STEP = 1.3
SMALLEST_SHARE = 1 / 64


class Packing(NamedTuple):
    """What an update needs to know about the lengths of its batch.

    Attributes:
      order: `[epochs * minibatches, P / minibatches]`, the groups of each optimizer step, such that
        its micro-batches and devices have about equally many tokens. None: as the update shuffles.
      room: Tokens of a micro-batch for which each device computes. None: it is not packed.
      padding: The share of the positions for which the update computes that count for nothing.
    """

    order: np.ndarray | None
    room: int | None
    padding: float


def make_packing(rl: ConfigDict, key: jax.Array, counts: np.ndarray) -> Packing:
    """The packing of a batch.

    Args:
      rl: The `rl` of a config.
      key: What `shuffled` gets, the same as the update's.
      counts: `[P, N, T]` boolean on the host, True at tokens that count in the loss.
    """
    P, N, T = counts.shape
    # The last token of a sample predicts nothing.
    needed = np.maximum(counts.sum(axis=-1) - 1, 0).sum(axis=-1)
    whole = N * max(T - 1, 1)
    if not rl.packing:
        return Packing(None, None, float(1 - needed.mean() / whole))
    size = P // (rl.minibatches * rl.micro_batches)
    shards = parallel.batch_shards(size)
    order = np.arange(P)[None]
    if rl.epochs * rl.minibatches > 1:
        order = np.asarray(shuffled(key, P, epochs=rl.epochs, minibatches=rl.minibatches))
    order = np.stack([_dealt(groups, needed, rl.micro_batches * shards) for groups in order])
    cells = needed[order].reshape(-1, size // shards).sum(axis=-1)
    room = room_for(cells.max(), whole * size // shards)
    return Packing(order, room, float(1 - cells.mean() / room))


def room_for(tokens: int, whole: int) -> int:
    """The least of the rooms `whole / 1.3^i`, rounded up, that has place for so many tokens.

    >>> [room_for(tokens, 1000) for tokens in (0, 100, 500, 770, 1000)]
    [20, 123, 592, 770, 1000]
    """
    room = whole
    for i in range(int(math.log(1 / SMALLEST_SHARE, STEP)) + 1):
        smaller = math.ceil(whole / STEP**i)
        room = smaller if smaller >= tokens else room
    return room


@partial(jax.jit, static_argnames=("count", "epochs", "minibatches"))
def shuffled(key: jax.Array, count: int, *, epochs: int, minibatches: int) -> jax.Array:
    """The groups of each optimizer step `[epochs * minibatches, count / minibatches]`."""
    keys = jax.random.split(key, epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
    return order.reshape(epochs * minibatches, -1)


def _dealt(groups: np.ndarray, tokens: np.ndarray, cells: int) -> np.ndarray:
    """Deals groups to cells of equally many: the longest to each, the next ones back again."""
    longest_first = groups[np.argsort(-tokens[groups], kind="stable")]
    rounds = longest_first.reshape(-1, cells)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T.ravel()
