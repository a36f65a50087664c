"""The countdown puzzle: reach a target with given numbers.

Answers are parsed and never executed, so scoring them needs no process of their own.
"""

import ast
import operator
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from maxpo.lm.tasks.text import Problem, text_only

__all__ = ["LONGEST", "exact_score", "television_score"]

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 200  # Characters; no sensible answer is longer, and parsing nests with the length.


@text_only
def exact_score(problem: Problem, completion: str) -> float:
    """1 for an expression with the target's value that has each number exactly once, else 0.

    These are the answers to which reasoning-gym's own scorer gives 1: it evaluates them as Python
    code, and also takes powers. Values are exact fractions.

    Args:
      problem: A problem of reasoning-gym's `countdown`, or any with `entry["metadata"]` that has
        `numbers` and `target`.
      completion: The answer, an expression with `+ - * /` and brackets.

    >>> game = Problem("", "", {"metadata": {"numbers": [25, 4, 3], "target": 103}})
    >>> [exact_score(game, answer) for answer in ("25*4+3", "3+4*25", "25*4", "25*4-3", "103")]
    [1.0, 1.0, 0.0, 0.0, 0.0]
    """
    metadata = problem.entry["metadata"]
    answer = _parse(completion)
    if answer is None or Counter(answer.numbers) != Counter(metadata["numbers"]):
        return 0.0
    return float(answer.value == metadata["target"])


@text_only
def television_score(problem: Problem, completion: str) -> float:
    """1 for the target, 0.7 within 5 of it, 0.5 within 10, as the programme's 10, 7 and 5 points.

    An answer is an expression with `+ - * /` and brackets in which each number of the problem
    stands at most once. Anything else scores 0. Values are exact fractions; unlike on television,
    steps in between may be negative or no integers.

    See https://en.wikipedia.org/wiki/Countdown_(game_show)#Numbers_round for the game.

    Args:
      problem: A problem of reasoning-gym's `countdown`, or any with `entry["metadata"]` that has
        `numbers` and `target`.
      completion: The answer.

    >>> game = Problem("", "", {"metadata": {"numbers": [25, 4, 3, 7], "target": 100}})
    >>> [television_score(game, answer) for answer in ("25*4", "25*4+3", "25*4+7", "25*4*3", "4+4")]
    [1.0, 0.7, 0.5, 0.0, 0.0]
    """
    metadata = problem.entry["metadata"]
    answer = _parse(completion, signs=False)
    if answer is None or Counter(answer.numbers) - Counter(metadata["numbers"]):
        return 0.0
    error = abs(answer.value - metadata["target"])
    return 1.0 if error == 0 else 0.7 if error <= 5 else 0.5 if error <= 10 else 0.0


class _Answer(NamedTuple):
    numbers: list[int]
    value: Fraction


def _parse(completion: str, *, signs: bool = True) -> _Answer | None:
    """The numbers and the value of an expression; None where it is none.

    Args:
      completion: The text.
      signs: Whether a sign may stand before a number or a bracket.
    """
    if len(completion) > LONGEST:
        return None
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                numbers.append(number)
                return Fraction(number)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand) if signs:
                return -value(operand) if isinstance(op, ast.USub) else value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](value(left), value(right))
        raise ValueError("expected + - * / of numbers")

    try:
        return _Answer(numbers, value(ast.parse(completion.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
