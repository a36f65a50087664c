"""What is said about samples whose verification failed; docs/samples.md has what they count."""

from maxpo import runs
from maxpo.lm.tasks.verification import Scores

__all__ = ["FailureLog", "counted"]


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
          scores: The scores of all its samples.

        Raises:
          RuntimeError: If the verifier raised on every sample, with the first message. Such scores
            say something of the verifier and nothing of the model.
        """
        if scores.failures["raised"] == scores.valid.size:
            raise RuntimeError(
                f"{what}: the verifier raised on all {scores.valid.size} samples, so there is "
                f"nothing to learn from them: {scores.message}"
            )
        if scores.message:
            self._say("first", f"warning: {what}: a verification failed: {scores.message}")
        if not scores.valid.any():
            self._say(
                what.split()[0],
                f"warning: {what}: the verification of all {scores.valid.size} samples failed "
                f"({counted(scores.failures)})",
            )

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
