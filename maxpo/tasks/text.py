"""Tasks whose problems and answers are texts: what a task of a language model is made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One problem.

    Attributes:
      prompt: What the model reads.
      answer: Text of a right answer, for supervised training; "" where none is known.
      entry: What the verifier has to know; picklable.
    """

    prompt: str
    answer: str
    entry: Mapping[str, Any]


Verifier = Callable[[Problem, str], float]
"""Reward of a completion. Picklable, and a function of its arguments alone."""


class TextTask(NamedTuple):
    """Problems to train on, others to measure on, and what gives reward."""

    name: str
    train: Sequence[Problem]
    held_out: Sequence[Problem]
    verifier: Verifier
