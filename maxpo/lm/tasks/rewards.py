"""Rewards: of several parts, and as plain functions that are called in this process."""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maxpo.lm.tasks._verification_worker import TEXTS
from maxpo.lm.tasks.text import Problem, Verifier
from maxpo.lm.tasks.verification import Outcome, PendingScores
from maxpo.lm.tasks.verifiers import find_verifier
from maxpo.lm.tasks.weighted import WeightedParts, named_parts

__all__ = ["GroupReward", "Reward", "RewardFunction", "group_reward", "load_rewards"]

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


def load_rewards(
    rewards: Mapping[str, str],
    weights: Mapping[str, float],
    *,
    decides: str | None = None,
    own: Mapping[str, Verifier] | None = None,
) -> WeightedParts:
    """A weighted sum of verifiers by their names.

    Args:
      rewards: Part to verifier, such as `{"correct": "numeric", "format": "my_rewards:has_box"}`.
      weights: Part to weight, such as `{"correct": 1.0, "format": 0.2}`.
      decides: The part that decides what is correct. None: the first one; say which where the
        mapping is a ConfigDict, which is sorted by name.
      own: The task's own verifiers by name, see `maxpo.lm.tasks.verifiers.find_verifier`.

    Raises:
      ValueError: If a verifier is unknown, naming its part, or as `WeightedParts`.
    """
    parts = {}
    for name, verifier in rewards.items():
        try:
            parts[name] = find_verifier(verifier, **(own or {}))
        except ValueError as error:
            raise ValueError(f"rewards: {name}: {error}") from error
    return WeightedParts(parts, weights, decides)


class RewardFunction:
    """Scores completions by a function in this process, with the interface of a `VerifierPool`.

    A call that raises, or returns no number, makes its sample (or its group) a failed one, as in
    the pool; there is no limit of time or memory, and what a completion does to the interpreter
    stays done. For text that is executed use a pool.

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
        weighted = self._reward if isinstance(self._reward, WeightedParts) else None
        pending = PendingScores(shape, weighted)
        for row, (problem, texts) in enumerate(zip(problems, completions, strict=True)):
            for column, outcome in enumerate(self._group(problem, texts)):
                pending.record(row, column, outcome)
        return pending

    def _group(self, problem: Problem, texts: Sequence[str]) -> list[Outcome]:
        if not isinstance(self._reward, GroupReward):
            parts = named_parts(self._reward)
            return [_outcome(parts, problem, text) for text in texts]
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
        given = {"": lambda _, reward: reward}
        return [_outcome(given, problem, reward) for reward in rewards]


def _outcome(
    parts: Mapping[str, Callable[[Problem, Any], float]], problem: Problem, value: Any
) -> Outcome:
    values = []
    for name, part in parts.items():
        where = f"part {name!r}: " if name else ""
        try:
            reward = part(problem, value)
            if reward is None or isinstance(reward, TEXTS):
                return Outcome((), "not_finite", f"{where}the reward was {reward!r}")
            values.append(float(reward))
        except OverflowError:
            values.append(math.inf)
        except Exception:
            return Outcome(failure="raised", message=where + traceback.format_exc())
    return Outcome(tuple(values))
