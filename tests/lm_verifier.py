"""A verifier that fails in every way, for tests that name it as `lm_verifier:unreliable`."""

import time

from maxpo.lm.tasks.answers import numeric_verifier
from maxpo.lm.tasks.text import Problem


def unreliable(problem: Problem, completion: str) -> float:
    """Raises, hangs or is not finite on completions that begin with certain digits."""
    if completion.startswith("1"):
        raise RuntimeError("no idea")
    if completion.startswith("2"):
        return float("nan")
    if completion == "33":
        time.sleep(60)
    return numeric_verifier(problem, completion)


def distance(problem: Problem, completion: str) -> float:
    """0 for "5" and less for other numbers; raises on anything else."""
    return -abs(int(completion) - 5)


def broken(problem: Problem, completion: str) -> float:
    """Raises on everything."""
    raise RuntimeError("the table of answers is missing")


def is_even(problem, completion):
    """1 for an even number of characters: half of what a random model writes is right."""
    return float(len(completion) % 2 == 0)
