"""A reward of several named parts with weights, such as a right answer and its form."""

import math
from collections.abc import Mapping, Sequence

from maxpo.lm.tasks.text import Problem, Verifier, is_text_only

__all__ = ["MOST_PARTS", "WeightedParts", "named_parts"]

MOST_PARTS = 100


class WeightedParts:
    r"""A weighted sum of verifiers, of which one decides what is correct.

        reward(problem, completion) = \sum_i weights_i * parts_i(problem, completion)

    Where all parts are scored, so is the sum; where one fails, the sample fails. pass@k counts the
    samples whose deciding part, without its weight, is at least `task.success`. Picklable if the
    parts are.

    Args:
      parts: Verifiers by name.
      weights: A weight for each part; 0 for one that is only logged.
      decides: Name of the part that decides. None: the first one.

    Raises:
      ValueError: If there is no part, a name is no identifier, a part is no function, parts and
        weights have different names, a weight is no finite number, all of them are 0, or no part
        has the name of the one that decides.

    >>> def is_short(problem, completion):
    ...     return float(len(completion) < 4)
    >>> def is_right(problem, completion):
    ...     return float(completion.strip() == problem.answer)
    >>> reward = WeightedParts({"right": is_right, "short": is_short}, {"right": 1, "short": 0.5})
    >>> [reward(Problem("6 * 7?", "42"), text) for text in ("42", "  42", "43")]
    [1.5, 1.0, 0.5]
    """

    def __init__(
        self,
        parts: Mapping[str, Verifier],
        weights: Mapping[str, float],
        decides: str | None = None,
    ):
        _check_parts(parts)
        _check_weights(parts, weights)
        self.parts = dict(parts)
        self.weights = {name: float(weights[name]) for name in parts}
        self.decides = next(iter(parts)) if decides is None else decides
        if self.decides not in parts:
            raise ValueError(f"decides: expected one of {_listed(parts)}, got {decides!r}")

    def __call__(self, problem: Problem, completion: str) -> float:
        """The weighted sum."""
        return self.total([float(part(problem, completion)) for part in self.parts.values()])

    @property
    def text_only(self) -> Verifier | None:
        """As `maxpo.lm.tasks.text.text_only` marks a function: itself, if all parts are marked."""
        return self if all(map(is_text_only, self.parts.values())) else None

    def preload(self) -> None:
        """Imports what the parts import when they are called."""
        for part in self.parts.values():
            getattr(part, "preload", lambda: None)()

    def total(self, values: Sequence[float]) -> float:
        """The weighted sum of the parts' values, which come in their order."""
        terms = zip(self.weights.values(), values, strict=True)
        return sum(weight * value for weight, value in terms)


def named_parts(verifier: Verifier) -> dict[str, Verifier]:
    """The parts of a verifier by name; one that has none is the only one, and has no name."""
    return verifier.parts if isinstance(verifier, WeightedParts) else {"": verifier}


def _check_parts(parts: Mapping[str, Verifier]) -> None:
    if not 1 <= len(parts) <= MOST_PARTS:
        raise ValueError(f"parts: expected 1 to {MOST_PARTS}, got {len(parts)}")
    for name, part in parts.items():
        if not name.isidentifier():
            raise ValueError(f"parts: expected names such as 'format', got {name!r}")
        if not callable(part):
            raise ValueError(f"parts: {name}: expected a function, got {part!r}")


def _check_weights(parts: Mapping[str, Verifier], weights: Mapping[str, float]) -> None:
    if set(weights) != set(parts):
        raise ValueError(
            f"weights: expected one for each of {_listed(parts)}, got {_listed(weights) or 'none'}"
        )
    for name, weight in weights.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight):
            raise ValueError(f"weights: {name}: expected a finite number, got {weight!r}")
    if not any(weights.values()):
        raise ValueError("weights: expected one that is not 0, got only zeros")


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names)
