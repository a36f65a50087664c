"""Verifiers whose time is known. Workers import this module, so it imports little.

A problem's entry has `seconds`, or `program`, source code that calls a completion's `solve`.
"""

import time

from maxpo.lm.tasks.text import Problem, text_only

__all__ = ["compute", "execute", "read", "wait"]


def compute(problem: Problem, completion: str) -> float:
    """Keeps a core busy for that long."""
    end = time.perf_counter() + problem.entry["seconds"]
    while time.perf_counter() < end:
        pass
    return float(len(completion))


@text_only
def read(problem: Problem, completion: str) -> float:
    """As `compute`, with the promise to do no more than that."""
    return compute(problem, completion)


def wait(problem: Problem, completion: str) -> float:
    """Sleeps for that long."""
    time.sleep(problem.entry["seconds"])
    return float(len(completion))


def execute(problem: Problem, completion: str) -> float:
    """Executes the completion and counts the tests that it passes."""
    space: dict[str, object] = {}
    exec(completion, space)
    exec(problem.entry["program"], space)
    return float(space["passed"])  # type: ignore[arg-type]
