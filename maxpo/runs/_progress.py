"""How far long work is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import errno
import itertools
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import TextIO, TypeVar

import jax
from tqdm import tqdm

from maxpo.runs._preemption import saved_before_the_end

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """Tells the person who watches the run, on stderr, once on a pod; see `put`."""
    if jax.process_index() == 0:
        put(message, sys.stderr)


def show(text: str) -> None:
    """Prints what came out, on stdout, once on a pod; see `put`."""
    if jax.process_index() == 0:
        put(text, sys.stdout)


def put(text: str, stream: TextIO | None) -> None:
    """Prints a line on stdout or stderr, and is silent where it cannot be written.

    What only describes a run must not end it: the program that read a pipe may have ended, as in
    `2>&1 | tee log` or `| head`, the terminal may be closed, the disk of a log may be full.
    """
    if stream is not None:  # As it is where a program is started without one, and all is well.
        with _spared(stream):
            print(text, file=stream, flush=True)


@contextlib.contextmanager
def _spared(stream: TextIO) -> Iterator[None]:
    """Leaves out what its block cannot write."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            _silence(stream)
    except ValueError:
        if not stream.closed:
            raise


def _silence(stream: TextIO) -> None:
    """Sends a stream that nobody will read any more to where all can be written.

    Python would else try once more at its end to write what is left, and exit with code 120.
    """
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


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
    shown: _Bar | _Lines = (_Bar if _is_terminal(sys.stderr) else _Lines)(start, total, unit)
    try:
        for done, item in pairs:
            yield item
            shown.update(done)
    finally:
        shown.close()


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


class _Bar:
    def __init__(self, start: int, total: int, unit: str):
        self._bar = tqdm(
            total=total, initial=start, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True
        )

    def update(self, done: int) -> None:
        with _spared(sys.stderr):
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        with _spared(sys.stderr):
            self._bar.close()
            sys.stderr.flush()  # Where the terminal is closed, tqdm has not said so.


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
