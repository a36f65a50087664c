"""How far long work is: a bar on a terminal, a line now and then elsewhere."""

import itertools
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

import jax
from tqdm import tqdm

from maxpo.runs._preemption import saved_before_the_end

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """Tells the person who watches the run, on stderr, once on a pod."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def steps(start: int, total: int, *, every: int = 1, unit: str = "updates") -> Iterator[int]:
    """Yields the number of updates that are done at the end of each turn of a training loop.

    The turns are `every` updates long, the last one as long as is left, and `start` is what
    `Run.restore` returned. Progress and throughput are counted in updates.

    Raises:
      ValueError: If `every` is not positive.
      Preempted: If SIGTERM has come and the loop does not save; see `preemptible`.

    >>> list(steps(4, 10, every=4))
    [8, 10]
    """
    if every < 1:
        raise ValueError(f"every: expected at least 1, got {every}")
    ends = itertools.chain(range(start + every, total, every), [total] if start < total else [])
    turns = _follow(((end, end) for end in ends), start, total, unit)
    return saved_before_the_end(turns)


def progress(items: Collection[T], *, unit: str = "items") -> Iterator[T]:
    """Yields the items of a collection and shows how many are done.

    >>> [item * 2 for item in progress([1, 2], unit="batches")]
    [2, 4]
    """
    return _follow(enumerate(items, start=1), 0, len(items), unit)


def _follow(pairs: Iterable[tuple[int, T]], start: int, total: int, unit: str) -> Iterator[T]:
    """Yields the second of each pair; the first is how much is done when the next is asked for."""
    if jax.process_index() != 0:
        for _, item in pairs:
            yield item
        return
    shown: _Bar | _Lines = (_Bar if sys.stderr.isatty() else _Lines)(start, total, unit)
    try:
        for done, item in pairs:
            yield item
            shown.update(done)
    finally:
        shown.close()


class _Bar:
    def __init__(self, start: int, total: int, unit: str):
        self._bar = tqdm(
            total=total, initial=start, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True
        )

    def update(self, done: int) -> None:
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, start: int, total: int, unit: str):
        self._total, self._unit = total, unit
        self._done = self._said = start
        self._began = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def update(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._say(now)

    def close(self) -> None:
        if self._done > self._said:
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        self._last, self._said = now, self._done
        say(f"{self._done}/{self._total} {self._unit}, {self._pace(now)}")

    def _pace(self, now: float) -> str:
        """How fast it goes since the end of the first turn, in which programs are compiled."""
        done, then = self._first or (self._done, now)
        if self._done == done:
            return f"{now - self._began:.1f} seconds so far"
        rate = (self._done - done) / max(now - then, 1e-9)
        left = tqdm.format_interval((self._total - self._done) / rate)
        pace = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} seconds each"
        return f"{pace}, {left} left"
