"""Samples whose verification failed: what they count in a group, and what is said about them.

Scores `[..., n]` of this package are NaN at such samples; docs/samples.md has the rules.
"""

import numpy as np

from maxpo import runs
from maxpo.lm.tasks.verification import Scores


def marked(scores: Scores) -> np.ndarray:
    """Scores `[P, N]`, NaN where the verification failed."""
    return np.where(scores.valid, scores.rewards, np.float32(np.nan))


def as_lowest(scores: np.ndarray) -> np.ndarray:
    """Scores with a number for failures: the lowest of the group, but at most 0.

    So a failure never beats a sample that was scored. A group in which all failed gets the lowest
    score of all, again at most 0.

    Args:
      scores: `[..., n]`, NaN where the verification failed.

    >>> as_lowest(np.array([[-0.1, -0.2, np.nan, -0.4], [0.5, 0.7, np.nan, np.nan]]))
    array([[-0.1, -0.2, -0.4, -0.4],
           [ 0.5,  0.7,  0. ,  0. ]])
    """
    lowest = np.fmin.reduce(scores, axis=-1, keepdims=True)
    of_all = np.fmin.reduce(scores, axis=None)
    lowest = np.where(np.isnan(lowest), of_all, lowest)
    return np.where(np.isnan(scores), np.fmin(lowest, np.float32(0)), scores)


class FailureLog:
    """Tells the person who watches a study about failed verifications, on stderr.

    The first message is shown once, and so is that all samples of a step failed.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def note(self, what: str, scores: Scores) -> None:
        """Reports the failures among the scores of a step or an evaluation.

        Args:
          what: Whose scores they are, such as "step 3".
          scores: Of all its samples.
        """
        if scores.message:
            self._say("first", f"warning: {what}: a verification failed: {scores.message}")
        if not scores.valid.any():
            self._say(
                what.split()[0],
                f"warning: {what}: the verification of all {scores.valid.size} samples failed "
                f"({counted(scores.failures)})",
            )

    def note_step(self, step: int, scores: Scores) -> None:
        """As `note`, of a step of training.

        Raises:
          RuntimeError: If the verifier raised on every sample, with the first message.
        """
        if scores.failures["raised"] == scores.valid.size:
            raise RuntimeError(
                f"step {step}: the verifier raised on all {scores.valid.size} samples, so there is "
                f"nothing to learn from: {scores.message}"
            )
        self.note(f"step {step}", scores)

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            runs.say(message.rstrip())


def counted(failures: dict[str, int]) -> str:
    """The kinds of failures with their numbers.

    >>> counted({"raised": 3, "timed_out": 0, "not_finite": 1})
    '3 raised, 0 timed out, 1 not finite'
    """
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in failures.items())
