"""Timing in turns: what disturbs the machine then disturbs all contenders alike."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import jax

__all__ = ["take_turns", "turns"]

Name = TypeVar("Name", bound=Hashable)


def turns(
    calls: Mapping[Name, Callable[[], Any]],
    repeats: int,
    *,
    progress: Callable[[range], Any] = lambda rounds: rounds,
    at_most: Mapping[Name, int] | None = None,
) -> Iterator[tuple[Name, float, Any]]:
    """Makes every call once in each round; the first round compiles and is not counted.

    Args:
      calls: By name.
      repeats: Rounds that count.
      progress: Wraps the rounds, such as `runs.progress`.
      at_most: Fewer rounds for some of them.

    Yields:
      The name, the seconds until its result was there, and the result.
    """
    limits = at_most or {}
    for number in progress(range(repeats + 1)):
        for name, call in calls.items():
            if number > limits.get(name, repeats):
                continue
            began = time.perf_counter()
            result = jax.block_until_ready(call())
            if number:
                yield name, time.perf_counter() - began, result


def take_turns(
    calls: Mapping[Name, Callable[[], Any]],
    repeats: int,
    *,
    progress: Callable[[range], Any] = lambda rounds: rounds,
    at_most: Mapping[Name, int] | None = None,
) -> dict[Name, list[float]]:
    """Seconds of each call in each round; arguments as for `turns`.

    >>> seconds = take_turns({"nothing": lambda: None, "sum": lambda: sum(range(10))}, repeats=2)
    >>> {name: len(times) for name, times in seconds.items()}
    {'nothing': 2, 'sum': 2}
    """
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    for name, seconds, _ in turns(calls, repeats, progress=progress, at_most=at_most):
        taken[name].append(seconds)
    return taken
