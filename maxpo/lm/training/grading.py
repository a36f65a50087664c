"""From a verifier's scores to rewards, and to what counts as correct."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from maxpo.lm.tasks.verification import Scores

__all__ = ["Grading", "as_lowest", "deciding", "marked", "read_summary", "summarized"]


class Grading(NamedTuple):
    """What scores mean. In arrays a sample whose verification failed is NaN.

    Attributes:
      success: The score, or the value of the part that decides, from which a sample is correct.
      binary: Whether the reward is 1 for a correct sample and 0 for any other, or the score itself.
    """

    success: float
    binary: bool

    def rewards(self, scores: Scores) -> np.ndarray:
        """What is maximized, `[P, N]`; never NaN.

        A failed sample gets a reward that is never above that of a scored one: 0, or with graded
        scores that of `as_lowest`.
        """
        if self.binary:
            return self.correct(deciding(scores)).astype(np.float32)
        return as_lowest(marked(scores))

    def correct(self, values: np.ndarray) -> np.ndarray:
        """Which samples count for pass@k: those that were scored with at least `success`.

        Args:
          values: `[..., n]` of `deciding`: the scores themselves where a reward has no parts.
        """
        return values >= self.success


def marked(scores: Scores) -> np.ndarray:
    """Scores `[P, N]`, NaN where the verification failed."""
    return np.where(scores.valid, scores.rewards, np.float32(np.nan))


def deciding(scores: Scores) -> np.ndarray:
    """What decides on success `[P, N]`, NaN where the verification failed."""
    return np.where(scores.valid, scores.deciding, np.float32(np.nan))


def summarized(scores: Scores) -> dict[str, np.ndarray]:
    """What a run's summary keeps of held-out scores; `read_summary` gives it back.

    Returns:
      "scores" `[P, n]`, `marked`; and "deciding" `[P, n]` where the reward has parts.
    """
    found = {"scores": marked(scores)}
    return {**found, "deciding": deciding(scores)} if scores.parts else found


def read_summary(summary: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """`marked` and `deciding` scores `[P, n]` of a run's summary."""
    # JSON has the string "NaN", which NumPy reads.
    scores = np.asarray(summary["scores"], np.float32)
    return scores, np.asarray(summary.get("deciding", scores), np.float32)


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
