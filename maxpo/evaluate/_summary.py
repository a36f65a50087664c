"""The summary of a run of this project's trainer: scores of its held-out problems."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maxpo.evaluate._fields import PROBLEM, Fields, score_of
from maxpo.runs import UsageError

__all__ = ["Summary", "is_summary", "read_summary"]

SCORES, DECIDING = "scores", "deciding"


class Summary(NamedTuple):
    """The scores of P held-out problems after the last step of a run.

    Attributes:
      fields: The summary's fields.
      problem: `[M]`, the place of each sample's problem among the held-out ones.
      score: `[M]`, NaN where the verification failed.
      deciding: `[M]`, what decides on success.
      problems: P.
      held_out: What tells the problems from others, if the run's config has it.
    """

    fields: Fields
    problem: list[int]
    score: list[float]
    deciding: list[float]
    problems: int
    held_out: str | None


def is_summary(record: Mapping[str, Any]) -> bool:
    """Whether an object is the summary of a run and not a sample or a problem."""
    scores = record.get(SCORES)
    if not isinstance(scores, list) or not scores or not isinstance(scores[0], list):
        return False
    return not any(field in record for field in PROBLEM)


def read_summary(path: Path, record: Mapping[str, Any]) -> Summary:
    """What a summary says.

    Args:
      path: Its file; the run's config is beside it.
      record: It.

    Raises:
      UsageError: If its scores are none.
    """
    scores = _rows(path, record, SCORES)
    # Only rewards of several parts have others to decide by.
    has_others = DECIDING in record
    deciding = _rows(path, record, DECIDING) if has_others else scores
    sizes = [len(row) for row in scores]
    if [len(row) for row in deciding] != sizes:
        raise UsageError(
            f"{path}: {DECIDING}: expected as many numbers as {SCORES} has, got others"
        )
    return Summary(
        Fields(("order",), SCORES, None, DECIDING if has_others else None),
        [place for place, size in enumerate(sizes) for _ in range(size)],
        [value for row in scores for value in row],
        [value for row in deciding for value in row],
        len(scores),
        _held_out(path),
    )


def _rows(path: Path, record: Mapping[str, Any], field: str) -> Sequence[list[float]]:
    rows = record[field]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UsageError(f"{path}: {field}: expected a list of lists, got something else")
    try:
        return [[score_of(value, {field: value}, field) for value in row] for row in rows]
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _held_out(path: Path) -> str | None:
    """What the config of the run says of its held-out problems, if it does."""
    try:
        config = json.loads(path.with_name("config.json").read_bytes())
        return str(config["digests"]["held_out"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
