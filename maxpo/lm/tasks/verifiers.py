"""The verifiers that go by a name, for tasks whose problems have an answer to compare with."""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from maxpo.lm.tasks.answers import gold_number, is_mathematics, math_verifier, numeric_verifier
from maxpo.lm.tasks.text import Problem, Verifier, load_verifier, shown, text_only
from maxpo.lm.tasks.weighted import named_parts

__all__ = ["BUILT_IN", "BuiltIn", "check_answer", "comparing", "exact_verifier", "find_verifier"]


class BuiltIn(NamedTuple):
    """A verifier that compares with a problem's answer.

    Attributes:
      verifier: The function.
      expected: What an answer must be.
      compares: Whether a text is such an answer.
    """

    verifier: Verifier
    expected: str
    compares: Callable[[str], bool]


@text_only
def exact_verifier(problem: Problem, completion: str) -> float:
    """1 where a completion is the problem's answer, but for white space, else 0.

    White space around a text does not count, and any within it is as good as one space. Characters
    are compared in Unicode's form NFC, in which there is one way to write an accented letter.

    >>> [exact_verifier(Problem("", "New York"), text) for text in (" New  York ", "New York.")]
    [1.0, 0.0]
    """
    return float(_normal(completion) == _normal(problem.answer))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


BUILT_IN = {
    "exact": BuiltIn(exact_verifier, "a text that is not blank", lambda text: bool(text.strip())),
    "numeric": BuiltIn(
        numeric_verifier,
        "a number and nothing else",
        lambda text: gold_number(text) is not None,
    ),
    "math": BuiltIn(math_verifier, "mathematics, such as LaTeX", is_mathematics),
}
"""By name: "exact" compares texts, see `exact_verifier`; "numeric" numbers, exactly, see
`maxpo.lm.tasks.answers.numeric_answer`; "math" mathematics in LaTeX, see
`maxpo.lm.tasks.answers.math_verifier`."""


def find_verifier(name: str, **own: Verifier) -> Verifier:
    """A verifier by its name.

    Args:
      name: One of `BUILT_IN`, one of the task's own, or "module:function".
      **own: The task's own, by name.

    Raises:
      ValueError: If it is none of these, cannot be imported or is no function.
    """
    return load_verifier(name, **own, **{known: of.verifier for known, of in BUILT_IN.items()})


def comparing(verifier: Verifier) -> dict[str, BuiltIn]:
    """Those of `BUILT_IN` that a verifier is, or has among its parts, by their names."""
    parts = named_parts(verifier).values()
    return {name: of for name, of in BUILT_IN.items() if any(of.verifier is part for part in parts)}


def check_answer(verifier: Verifier, problem: Problem, where: str) -> None:
    """Checks that those of `BUILT_IN` in a verifier can compare with the answer of a problem.

    Args:
      verifier: Any.
      problem: A problem.
      where: Where its answer is, for the message.

    Raises:
      ImportError: If "math" is one of them and its package is missing.
      ValueError: If one of them cannot.
    """
    for name, of in comparing(verifier).items():
        if not of.compares(problem.answer):
            raise ValueError(
                f"{where}: the {name} verifier expected {of.expected}, got {shown(problem.answer)}"
            )
