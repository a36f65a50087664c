"""Countdown as on television: near misses score."""

import ast
import operator
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from maxpo.tasks.text import Problem, text_only

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 200  # Characters; no sensible answer is longer, and parsing nests with the length.


@text_only
def television_score(problem: Problem, completion: str) -> float:
    """1 for the target, 0.7 within 5 of it, 0.5 within 10, as the programme's 10, 7 and 5 points.

    An answer is an expression with `+ - * /` and brackets in which each number of the problem
    stands at most once. Anything else scores 0. Values are exact fractions; unlike on television,
    steps in between may be negative or no integers.

    See https://en.wikipedia.org/wiki/Countdown_(game_show)#Numbers_round for the game.

    Args:
      problem: Of reasoning-gym's data set `countdown`, or any with `entry["metadata"]` that has
        `numbers` and `target`.
      completion: The answer.

    >>> game = Problem("", "", {"metadata": {"numbers": [25, 4, 3, 7], "target": 100}})
    >>> [television_score(game, answer) for answer in ("25*4", "25*4+3", "25*4+7", "25*4*3", "4+4")]
    [1.0, 0.7, 0.5, 0.0, 0.0]
    """
    metadata = problem.entry["metadata"]
    try:
        tree = ast.parse(completion[: LONGEST + 1].strip(), mode="eval").body
        if len(completion) > LONGEST or Counter(_numbers(tree)) - Counter(metadata["numbers"]):
            return 0.0
        error = abs(_value(tree) - metadata["target"])
    except (SyntaxError, ValueError, ZeroDivisionError):
        return 0.0
    return 1.0 if error == 0 else 0.7 if error <= 5 else 0.5 if error <= 10 else 0.0


def _numbers(node: ast.expr) -> Iterator[int]:
    """All numbers of an expression, from left to right; ValueError where it is none of the game."""
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            yield number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            yield from _numbers(left)
            yield from _numbers(right)
        case _:
            raise ValueError(f"expected + - * / of numbers, got {ast.unparse(node)}")


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return Fraction(node.value)
