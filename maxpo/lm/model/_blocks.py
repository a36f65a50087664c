"""Sampling in blocks, driven by the host: caches grow, and samples that have ended go."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxpo import parallel
from maxpo.lm.model import _decoding, _graphs, _rows
from maxpo.lm.model._decoding import Chances, Samples, Settings
from maxpo.lm.model.policy import NO_LENGTH
from maxpo.lm.model.prompts import Completions, Prompts

# Completions of so many tokens are sampled by one program.
BLOCK = 64


def rooms(max_new_tokens: int) -> list[int]:
    """How many tokens caches have room for, one block after the other.

    The third and later blocks are at most half as long as all before them together, so that a step
    pays for at most half as much again as there is, and the programs are few.
    """
    last = max(max_new_tokens - 1, 1)  # No token attends to the last one.
    found, room = [], BLOCK
    while room < last:
        found.append(room)
        room += max(room // 2 // BLOCK, 1) * BLOCK
    return [*found, last]


class Blocks:
    """A batch that is sampled block by block; the first one is in the device's queue at once.

    Args:
      graph: Of the model, from `_graphs.hashable`.
      state: The model's arrays.
      axes: Its `cache_length_axes`.
      prompts: P prompts.
      chances: Of the tokens.
      settings: What programs are compiled for.
    """

    def __init__(
        self,
        graph: Any,
        state: Any,
        axes: Any,
        prompts: Prompts,
        chances: Chances,
        settings: Settings,
    ):
        P, self._prompt_length = prompts.tokens.shape
        self._model, self._axes = (graph, state), axes
        self._chances, self._settings, self._count = chances, settings, P
        self._rooms = rooms(settings.max_new_tokens)
        # A batch that the devices do not divide is not spread over them.
        shards = 1 if P % parallel.data_size() else parallel.data_size()
        self._rows = _rows.of_groups(P, settings.group_size, shards)
        # Tokens and log-probabilities of all samples, once some have gone.
        self._whole: list[jax.Array] | None = None
        self._weights, self._prompt, self._samples, self._seen = _first(
            *self._model,
            prompts,
            chances,
            settings,
            room=self._rooms[0],
            stop=np.int32(self._stop),
            enough=np.int32(_rows.enough(self._rows, P * settings.group_size)),
        )

    def finish(self) -> Completions:
        """Waits for each block and starts the next one; to be called once.

        All processes see all ends, and so come to the same decisions.
        """
        while True:
            step, done = jax.device_get(self._seen)
            alive = ~done
            if step == self._settings.max_new_tokens or not alive.any():
                return self._completions()
            is_full = step == self._stop
            if is_full:
                del self._rooms[0]
            room = self._rooms[0]
            move = _rows.move(self._rows, alive, prompt=self._prompt_length, room=room)
            if move is not None:
                self._go_on_with(move)
            if is_full:
                self._grow(room)
            self._run(step, _rows.enough(self._rows, int(alive.sum())))

    @property
    def _stop(self) -> int:
        """The first token that there is no room for the one before."""
        return min(self._rooms[0] + 1, self._settings.max_new_tokens)

    def _run(self, step: np.ndarray, enough: int) -> None:
        self._samples, self._seen = _further(
            *self._model,
            self._samples,
            self._weights,
            self._prompt,
            None if self._whole is None else self._rows.flat,
            self._chances,
            self._settings,
            prompts=self._count,
            step=step,
            stop=np.int32(self._stop),
            enough=np.int32(enough),
        )

    def _go_on_with(self, move: _rows.Move) -> None:
        """Leaves the samples behind that have come to an end."""
        self._put_back()
        take = partial(_rows.taken, source=move.samples_from, leading=2)
        others = jax.tree.map(take, self._samples._replace(cache=None))
        self._samples = others._replace(
            cache=jax.tree.map(partial(_replaced, take), self._samples.cache),
            done=jnp.logical_or(others.done, move.is_empty),
        )
        take = partial(_rows.taken, source=move.rows_from, leading=1)
        self._prompt = jax.tree.map(take, self._prompt)
        self._rows = move.rows

    def _grow(self, room: int) -> None:
        def change(array: jax.Array, axis: int) -> jax.Array:
            if axis == NO_LENGTH:
                return array
            return _replaced(partial(_rows.grown, axis=axis, length=room), array)

        cache = jax.tree.map(change, self._samples.cache, self._axes)
        self._samples = self._samples._replace(cache=cache)

    def _put_back(self) -> None:
        """Writes what the samples have to their places in the batch."""
        found = [self._samples.tokens, self._samples.log_probs]
        if self._whole is not None:
            places = self._rows.flat
            found = [
                _rows.put_back(whole, samples, places)
                for whole, samples in zip(self._whole, found, strict=True)
            ]
        self._whole = found

    def _completions(self) -> Completions:
        self._put_back()
        assert self._whole is not None
        return _completions(*self._whole, self._settings)


def _replaced(change: Callable[[jax.Array], jax.Array], array: jax.Array) -> jax.Array:
    """The changed array, the old one freed: of a cache only one array is held twice at a time."""
    changed = change(array)
    array.delete()
    return changed


_completions = jax.jit(_decoding.completions, static_argnums=2)

Seen = tuple[jax.Array, jax.Array]
"""The next token's number, and which samples have come to an end: what the host decides by."""


@partial(jax.jit, static_argnames=("graph", "settings", "room"))
def _first(
    graph: Any,
    state: Any,
    prompts: Prompts,
    chances: Chances,
    settings: Settings,
    *,
    room: int,
    stop: jax.Array,
    enough: jax.Array,
) -> tuple[Any, Any, Samples, Seen]:
    """Weights, what rows attend to, and the samples after a first block."""
    model = _graphs.merged(graph, state)
    prompt, samples = _decoding.begin(model, prompts, chances, settings, room=room)
    weights = model.decoding_weights()
    samples, step = _decoding.advance(
        model,
        weights,
        prompt,
        samples,
        chances,
        settings,
        prompts=prompts.tokens.shape[0],
        places=None,
        step=jnp.int32(1),
        stop=stop,
        enough=enough,
    )
    # An array that the model has put in from its state would be donated, and lost to it.
    samples = samples._replace(cache=jax.tree.map(jnp.copy, samples.cache))
    return weights, prompt, samples, parallel.constrain((step, samples.done))


@partial(jax.jit, static_argnames=("graph", "settings", "prompts"), donate_argnames="samples")
def _further(
    graph: Any,
    state: Any,
    samples: Samples,
    weights: Any,
    prompt: Any,
    places: jax.Array | None,
    chances: Chances,
    settings: Settings,
    *,
    prompts: int,
    step: jax.Array,
    stop: jax.Array,
    enough: jax.Array,
) -> tuple[Samples, Seen]:
    """The samples after some more tokens."""
    samples, step = _decoding.advance(
        _graphs.merged(graph, state),
        weights,
        prompt,
        samples,
        chances,
        settings,
        prompts=prompts,
        places=places,
        step=step,
        stop=stop,
        enough=enough,
    )
    return samples, parallel.constrain((step, samples.done))
