"""Verifiers that do what a completion says. Workers import them from here."""

import collections
import contextlib
import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maxpo.lm.tasks.text import Problem, text_only


def _raise() -> None:
    raise ValueError("as told")


def _swallow() -> float:
    """Catches everything and is content, late."""
    with contextlib.suppress(BaseException):
        time.sleep(60)
    return 1.0


def _ignore_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)


def hold_interpreter() -> None:
    """Never comes back from C: no signal handler and no other thread runs."""
    collections.deque(itertools.repeat(0), maxlen=0)


def _timer_of_its_own() -> float:
    """As libraries do that limit time by the same signal."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 1.0


ACTIONS: dict[str, Callable[[], Any]] = {
    "raise": _raise,
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "beyond float32": lambda: 1e39,
    "text": lambda: "1.0",
    "none": lambda: None,
    "list": lambda: [1.0, 2.0],
    "sleep": lambda: time.sleep(60),
    "loop": lambda: collections.deque(iter(lambda: 0, 1), maxlen=0),
    "swallow": _swallow,
    "ignore signals": _ignore_signals,
    "hold interpreter": hold_interpreter,
    "timer of its own": _timer_of_its_own,
    "bool": lambda: True,
    "integer": lambda: 3,
    "numpy": lambda: np.float64(0.25),
    "platform": lambda: os.environ["JAX_PLATFORMS"] == "cpu",
}


def obey(problem: Problem, completion: str) -> Any:
    """Does the action of that name; of a number, the sum with the problem's own."""
    if completion in ACTIONS:
        return ACTIONS[completion]()
    return problem.entry["number"] + float(completion)


def execute(problem: Problem, completion: str) -> Any:
    """Whether the completion, a program, sets `answer` to the problem's number."""
    space: dict[str, Any] = {"folder": problem.entry.get("folder")}
    exec(completion, space)
    if "reward" in space:
        return space["reward"]
    return float(np.float32(sum([space["answer"] == problem.entry["number"]])))


@text_only
def state(problem: Problem, completion: str) -> float:
    """Number of the process, or the action of that name."""
    return ACTIONS[completion]() if completion in ACTIONS else float(os.getpid())


@text_only
def length(problem: Problem, completion: str) -> float:
    """Number of the completion's characters."""
    return float(len(completion))


@functools.wraps(state, assigned=())
def wrapped_state(problem: Problem, completion: str) -> float:
    """Takes over the mark, but did not make that promise."""
    return state(problem, completion)


def meet(problem: Problem, completion: str) -> float:
    """Makes a file of the first name and waits for one of the second."""
    folder = Path(problem.entry["folder"])
    mine, _, others = completion.partition(" meets ")
    (folder / mine).touch()
    while not (folder / others).exists():
        time.sleep(0.01)
    return 1.0


class Unloadable:
    """Can be sent, but not received."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ()

    def __call__(self, problem: Problem, completion: str) -> float:
        raise NotImplementedError
