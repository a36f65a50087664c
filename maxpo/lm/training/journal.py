"""`completions.jsonl`: what the model writes while it trains, for people to read."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from maxpo import runs
from maxpo.lm.tasks.text import Problem
from maxpo.lm.training.evaluation import Judge, Judged
from maxpo.lm.training.folders import COMPLETIONS
from maxpo.lm.training.grading import Grading, deciding
from maxpo.lm.training.rollouts import Collector, Rollouts, Sampler

__all__ = ["Journal"]


@dataclasses.dataclass(frozen=True)
class Journal:
    """Writes some groups whole to `completions.jsonl`, a line for each.

    A line has "step", "split" (train or held_out), "prompt", "answer" and "completions", each with
    "text", "score" (None where the verification failed), "correct" (see `Grading`), "reward",
    "advantage" (None of a held-out one), "end" (ended or truncated), "failure" (None, or what went
    wrong) and "tokens".

    Attributes:
      every: Steps between two that are written; 0: nothing is.
      groups: How many groups of a step, and held-out problems of an evaluation, are written.
    """

    every: int
    groups: int

    def train(
        self, run: runs.Run, step: int, groups: Rollouts, advantages: np.ndarray, collect: Collector
    ) -> None:
        """Writes groups of a step, if it is one to be written.

        Args:
          run: Takes the lines.
          step: The step.
          groups: Its groups.
          advantages: `[P, N]`, theirs.
          collect: Has collected them.
        """
        if not self.every or (step % self.every and step != 1):
            return
        for p in range(min(self.groups, len(groups.problems.problems))):
            rows = zip(
                self._written(groups, p, collect.sampler, collect.grading),
                groups.rewards[p].tolist(),
                advantages[p].tolist(),
                strict=True,
            )
            lines = [{**row, "reward": reward, "advantage": value} for row, reward, value in rows]
            self._append(run, step, "train", groups.problems.problems[p], lines)

    def held_out(self, run: runs.Run, step: int, judge: Judge, judged: Judged) -> None:
        """Writes groups of an evaluation."""
        if not self.every:
            return
        rewards = judge.grading.rewards(judged.scores)
        for p in range(min(self.groups, len(judge.problems.problems))):
            rows = zip(
                self._written(judged, p, judge.sampler, judge.grading),
                rewards[p].tolist(),
                strict=True,
            )
            lines = [{**row, "reward": reward, "advantage": None} for row, reward in rows]
            self._append(run, step, "held_out", judge.problems.problems[p], lines)

    def _append(
        self, run: runs.Run, step: int, split: str, problem: Problem, lines: list[dict[str, Any]]
    ) -> None:
        of_problem = {"prompt": problem.prompt, "answer": problem.answer}
        run.append(COMPLETIONS, step, {"split": split, **of_problem, "completions": lines})

    def _written(
        self, found: Rollouts | Judged, p: int, sampler: Sampler, grading: Grading
    ) -> Iterable[dict[str, Any]]:
        """What is known of each completion of a group without its reward."""
        scores = found.scores
        correct = grading.correct(deciding(scores)[p])
        group = jax.tree.map(lambda array: array[p : p + 1], found.completions)
        ended = sampler.ended(group)[0]
        for n, (tokens, mask) in enumerate(zip(group.tokens[0], group.mask[0], strict=True)):
            valid = bool(scores.valid[p, n])
            yield {
                "text": sampler.text(tokens, mask),
                "score": float(scores.rewards[p, n]) if valid else None,
                "correct": bool(correct[n]),
                "end": "ended" if ended[n] else "truncated",
                "failure": None if valid else scores.messages.get((p, n), "failed"),
                "tokens": int(mask.sum()),
            }
