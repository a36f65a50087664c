"""How many samples a second a pool of verifiers scores, beside plain calls in one process.

Calls and pools are taken in turns, so that a slow moment of the machine meets all of them, and
compared as medians. Plain calls, times the number of workers, are what a pool could do at best if
it cost nothing to keep samples apart.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from maxpo.lm.tasks.text import Problem, Verifier
from maxpo.lm.tasks.verification import VerifierPool
from maxpo.studies.speed import timed_verifiers

__all__ = [
    "ANSWER",
    "PROGRAM",
    "VERIFIERS",
    "Timing",
    "check_config",
    "make_batch",
    "measure",
    "table",
]

# What a model of code is asked for, and tests of it.
ANSWER = """
def solve(numbers):
    seen = {}
    for place, number in enumerate(numbers):
        if 100 - number in seen:
            return seen[100 - number], place
        seen[number] = place
"""
PROGRAM = """
passed = sum(solve([*range(n), 150 - n, n - 50]) == (n, n + 1) for n in range(2, 50))
"""

VERIFIERS: dict[str, Verifier] = {
    "compute": timed_verifiers.compute,
    "read": timed_verifiers.read,
    "wait": timed_verifiers.wait,
    "execute": timed_verifiers.execute,
}


class Timing(NamedTuple):
    """One verifier's throughput, in samples a second.

    Attributes:
      name: One of `VERIFIERS`.
      pool: With all workers of a pool.
      calls: Samples a second of plain calls in this process, times the number of workers.
    """

    name: str
    pool: float
    calls: float


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number makes no sense or a verifier is unknown."""
    for field in ("problems", "group_size", "workers", "repeats"):
        if config[field] < 1:
            raise ValueError(f"{field}: expected at least 1, got {config[field]}")
    if not config.seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {config.seconds}")
    for name in config.verifiers:
        if name not in VERIFIERS:
            raise ValueError(f"verifiers: expected some of {', '.join(VERIFIERS)}; got {name!r}")


def make_batch(config: ConfigDict) -> tuple[list[Problem], list[list[str]]]:
    """Problems and their completions, all different, so that each has to be scored."""
    entry = {"seconds": config.seconds, "program": PROGRAM}
    completions = [f"{ANSWER}# {number}" for number in range(config.group_size)]
    return [Problem("", "", entry)] * config.problems, [completions] * config.problems


def measure(config: ConfigDict) -> Iterator[tuple[int, Timing]]:
    """Throughput of every verifier, round by round.

    Raises:
      RuntimeError: If a sample fails.
    """
    problems, completions = make_batch(config)
    samples = config.problems * config.group_size
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(
                VerifierPool(VERIFIERS[name], workers=config.workers, time_limit=60.0)
            )
            for name in config.verifiers
        }
        for repeat in range(config.repeats + 1):
            for name, pool in pools.items():
                began = time.perf_counter()
                scores = pool.submit(problems, completions).result()
                in_pool = time.perf_counter() - began
                if not scores.valid.all():
                    raise RuntimeError(f"{name}: expected no failure, got {scores.failures}")
                began = time.perf_counter()
                for completion in completions[0]:
                    VERIFIERS[name](problems[0], completion)
                of_calls = time.perf_counter() - began
                if repeat:  # The first one waits for workers.
                    rate = config.workers * config.group_size / of_calls
                    yield repeat, Timing(name, samples / in_pool, rate)


def table(timings: list[Timing]) -> dict[str, dict[str, float]]:
    """Rows by verifier: medians of samples a second, and of the ratio of calls and pool."""
    rows = {}
    for name in dict.fromkeys(timing.name for timing in timings):
        own = [timing for timing in timings if timing.name == name]
        rows[name] = {
            "pool, samples/s": float(np.median([timing.pool for timing in own])),
            "calls, samples/s": float(np.median([timing.calls for timing in own])),
            "calls / pool": float(np.median([timing.calls / timing.pool for timing in own])),
        }
    return rows
