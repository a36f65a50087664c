"""Rewards as plain functions, called in this process."""

import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.verification import Outcome, PendingScores

__all__ = ["GroupReward", "Reward", "RewardFunction", "group_reward"]

Reward = Callable[[Problem, str], float]
"""Reward of one completion."""


class GroupReward:
    """A reward of a whole group; see `group_reward`."""

    def __init__(self, function: Callable[[Problem, Sequence[str]], Sequence[float]]):
        self.function = function


def group_reward(function: Callable[[Problem, Sequence[str]], Sequence[float]]) -> GroupReward:
    """Marks a reward that sees all N completions of a problem at once.

    Args:
      function: (problem, N texts) to N rewards, in their order. It may compare them, or score them
        in one call to another program.
    """
    return GroupReward(function)


class RewardFunction:
    """Scores completions by a function in this process, with the interface of a `VerifierPool`.

    A call that raises makes its sample (or its group) a failed one, as in the pool; there is no
    limit of time or memory, and what a completion does to the interpreter stays done. For text that
    is executed use a pool.

    Args:
      reward: A function of a problem and a text, or of a group.
    """

    def __init__(self, reward: Reward | GroupReward):
        self._reward = reward

    def submit(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
    ) -> PendingScores:
        """Scores P groups of N texts, one group for each problem, before it returns.

        Raises:
          ValueError: If a group's reward has another number of elements than the group.
        """
        shape = (len(problems), len(completions[0]) if completions else 0)
        pending = PendingScores(shape)
        for row, (problem, texts) in enumerate(zip(problems, completions, strict=True)):
            for column, outcome in enumerate(self._group(problem, texts)):
                pending.record(row, column, outcome.checked())
        return pending

    def _group(self, problem: Problem, texts: Sequence[str]) -> list[Outcome]:
        if not isinstance(self._reward, GroupReward):
            return [_outcome(self._reward, problem, text) for text in texts]
        try:
            rewards = list(self._reward.function(problem, texts))
        except Exception:
            message = traceback.format_exc()
            return [Outcome(failure="raised", message=message) for _ in texts]
        if len(rewards) != len(texts):
            raise ValueError(
                f"reward: expected {len(texts)} numbers for a group of {len(texts)} completions, "
                f"got {len(rewards)}"
            )
        return [_outcome(lambda _, reward: reward, problem, reward) for reward in rewards]


def _outcome(reward: Callable[[Problem, Any], float], problem: Problem, value: Any) -> Outcome:
    try:
        return Outcome(reward=float(reward(problem, value)))
    except OverflowError:
        return Outcome(reward=math.inf)
    except Exception:
        return Outcome(failure="raised", message=traceback.format_exc())
