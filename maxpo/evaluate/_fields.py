"""Which fields of a record say what, and what their values are."""

import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from maxpo.evaluate._records import shortened
from maxpo.runs import UsageError

__all__ = ["Fields", "find_fields", "problem_of", "scores_of"]

# Identifiers before texts, which they stand beside.
PROBLEM = (
    *("problem_id", "task_id", "question_id", "doc_id"),
    *("problem", "prompt", "question", "input"),
)
SCORE = ("score", "correct", "is_correct", "passed", "reward", "exact_match", "acc")
COMPLETIONS = "completions"
# Writers of JSON that turn what they do not know into text write the booleans of NumPy so.
BOOLEANS = {"true": True, "True": True, "false": False, "False": False}


class Fields(NamedTuple):
    """Names of the fields of a file's records.

    Attributes:
      problem: Fields whose values, together, tell problems apart.
      score: The score of a sample, or a list of scores.
      samples: The field with the list of a problem's samples, which have the scores; None where a
        record is a sample itself.
    """

    problem: tuple[str, ...]
    score: str
    samples: str | None


def find_fields(record: Mapping[str, Any], *, problem: str | None, score: str | None) -> Fields:
    """The fields of a file, by its first record.

    Args:
      record: The record.
      problem: The problem's fields, with commas between them; None: the first one of `PROBLEM` that
        the record has.
      score: The score's field; None: the only one of the record's `metrics`, if it has such a list,
        or the first one of `SCORE` that the record or its first sample has.

    Raises:
      UsageError: If the record has none of them, or several metrics.
    """
    samples = record.get(COMPLETIONS)
    first: Any = samples[0] if isinstance(samples, list) and samples else None
    nested = isinstance(first, dict)
    return Fields(
        tuple(problem.split(",")) if problem else (_first("problem", PROBLEM, record),),
        score or _metric(record) or _first("score", SCORE, first if nested else record),
        COMPLETIONS if nested else None,
    )


def problem_of(record: Mapping[str, Any], fields: Fields) -> Hashable:
    """What identifies the problem of a record.

    Raises:
      UsageError: If the record has no text or number there.
    """
    if len(fields.problem) > 1:
        return tuple([_problem(record, field) for field in fields.problem])
    return _problem(record, fields.problem[0])


def scores_of(record: Mapping[str, Any], fields: Fields) -> list[float]:
    """The scores of a record's samples, NaN where a sample has none.

    Raises:
      UsageError: If a sample has something else than a score.
    """
    if fields.samples is None:
        value = record.get(fields.score)
        if type(value) is list:
            return [_score({fields.score: item}, fields.score) for item in value]
        return [_score(record, fields.score)]
    samples = record.get(fields.samples)
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        got = _shown(record, fields.samples)
        raise UsageError(f"{fields.samples}: expected a list of objects, got {got}")
    return [_score(sample, fields.score) for sample in samples]


def _problem(record: Mapping[str, Any], field: str) -> str | float:
    value: Any = record.get(field)
    if type(value) not in (str, int, float):
        raise UsageError(f"{field}: expected text or a number, got {_shown(record, field)}")
    return value


def _score(sample: Mapping[str, Any], field: str) -> float:
    value: Any = sample.get(field, math.inf)
    if value is None:
        return math.nan
    try:
        score = float(BOOLEANS.get(value, value) if type(value) is str else value)
    except (TypeError, ValueError, OverflowError):
        score = math.inf
    if math.isinf(score):
        got = _shown(sample, field)
        raise UsageError(f"{field}: expected a finite number, a boolean or null, got {got}")
    return score


def _metric(record: Mapping[str, Any]) -> str | None:
    """The metric of a record that lists its metrics."""
    metrics = record.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return None
    if len(metrics) > 1:
        raise UsageError(
            f"metrics: expected one, got {', '.join(map(str, metrics))}; name one by --score"
        )
    return str(metrics[0])


def _first(name: str, known: tuple[str, ...], record: Mapping[str, Any]) -> str:
    for field in known:
        if field in record:
            return field
    raise UsageError(
        f"{name}: expected one of the fields {', '.join(known)}, got {', '.join(record)}; "
        f"name another by --{name}"
    )


def _shown(record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        return f"a record that has only {', '.join(record)}"
    return shortened(repr(record[field]))
