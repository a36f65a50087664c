"""Evaluation while training: when, which parameters were best, and when to end early."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from maxpo.lm.training.evaluation import Judge

__all__ = ["Schedule", "metric_of"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is judged when, decided by nothing but the metrics: a resumed run decides the same.

    Attributes:
      every: Steps between evaluations; 0: none while training.
      patience: Evaluations in a row without a new best, after which a run ends; 0: never.
      metric: The metric by which parameters are the best, such as "eval_pass_at_8".
      judge: Evaluates.
    """

    every: int
    patience: int
    metric: str
    judge: Judge

    def is_due(self, step: int, last: int) -> bool:
        """Whether there is an evaluation after a step: now and then, and after the last."""
        return bool(self.every) and (step % self.every == 0 or step == last)

    def is_best(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last evaluation is better than all before it."""
        *before, last = self._values(history)
        return all(last > value for value in before)

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run has waited long enough for a new best."""
        values = self._values(history)
        if not self.patience or not values:
            return False
        return len(values) - 1 - values.index(max(values)) >= self.patience

    def best(self, history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The step of the best evaluation and its value; None without any."""
        values = self._values(history)
        if not values:
            return None
        judged = [row for row in history if self.metric in row]
        found = judged[values.index(max(values))]
        return {"step": found["step"], self.metric: found[self.metric]}

    def _values(self, history: Sequence[Mapping[str, Any]]) -> list[float]:
        """What evaluations have found; NaN, where all samples failed, is less than any number."""
        found = [row[self.metric] for row in history if self.metric in row]
        return [-math.inf if math.isnan(value) else value for value in found]


def metric_of(k: int, *, binary: bool) -> str:
    """The metric that says how good the best of k is, on held-out problems."""
    return f"eval_{'pass' if binary else 'max'}_at_{k}"
