"""The verifiers that go by a name, for tasks whose problems have an answer to compare with."""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from maxpo.lm.tasks.answers import gold_number, is_mathematics, math_verifier, numeric_verifier
from maxpo.lm.tasks.text import Problem, Verifier, load_verifier, shown, text_only

__all__ = ["BUILT_IN", "BuiltIn", "check_answer", "exact_verifier", "find_verifier", "needs_answer"]


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


def needs_answer(verifier: Verifier) -> str | None:
    """The name of a verifier that compares with a problem's answer; None for any other."""
    return next((name for name, of in BUILT_IN.items() if of.verifier is verifier), None)


def check_answer(verifier: Verifier, problem: Problem, where: str) -> None:
    """Checks that a verifier of `BUILT_IN` can compare with the answer of a problem.

    Args:
      verifier: Any.
      problem: A problem.
      where: Where its answer is, for the message.

    Raises:
      ImportError: If the verifier is "math" and its package is missing.
      ValueError: If it cannot.
    """
    name = needs_answer(verifier)
    if name is not None and not BUILT_IN[name].compares(problem.answer):
        raise ValueError(
            f"{where}: the {name} verifier expected {BUILT_IN[name].expected}, "
            f"got {shown(problem.answer)}"
        )
