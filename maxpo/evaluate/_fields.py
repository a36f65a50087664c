"""Which fields of a record say what, and what their values are."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from maxpo.evaluate._records import shortened
from maxpo.runs import UsageError

__all__ = ["PROBLEM", "Fields", "find_fields", "problem_of", "score_of", "scores_of", "value_of"]

# Identifiers before texts, which they stand beside.
PROBLEM = (
    *("problem_id", "task_id", "question_id", "doc_id"),
    *("problem", "prompt", "question", "input"),
)
SCORE = ("score", "correct", "is_correct", "passed", "reward", "exact_match", "acc")
COMPLETIONS = "completions"
# Writers of JSON that turn what they do not know into text write the booleans of NumPy so.
BOOLEANS = {"true": True, "True": True, "false": False, "False": False}

_MISSING = object()


class Fields(NamedTuple):
    """Names of the fields of a file's records, as `value_of` reads them.

    Attributes:
      problem: Fields whose values, together, tell problems apart.
      score: The score of a sample, or a list of scores.
      samples: The field with the list of a problem's samples, which have the scores; None where a
        record is a sample itself.
      deciding: The field of a run's summary that decides on success, where that is not the score.
    """

    problem: tuple[str, ...]
    score: str
    samples: str | None
    deciding: str | None = None


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
      UsageError: If the record has no text, number, list or object there.
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
        value = record.get(fields.score, _MISSING)
        if value is _MISSING:
            value = value_of(record, fields.score, _MISSING)
        if type(value) is list:
            _check_list(record, fields.score, value)
            return [score_of(item, {fields.score: item}, fields.score) for item in value]
        return [score_of(value, record, fields.score)]
    samples = record.get(fields.samples)
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        got = _shown(record, fields.samples)
        raise UsageError(f"{fields.samples}: expected a list of objects, got {got}")
    return [
        score_of(value_of(sample, fields.score, _MISSING), sample, fields.score)
        for sample in samples
    ]


def _check_list(record: Mapping[str, Any], field: str, value: Sequence[Any]) -> None:
    """Refuses a list of lm-evaluation-harness that is about the parts of one answer.

    A record of it has one score for each metric, whichever of several answers (`repeats`) its
    filter has kept. A metric may be a list all the same: over the instructions of IFEval, or a pair
    that is aggregated later. It is read as one score for each answer only where the filter has kept
    that many of one request.
    """
    if "resps" not in record and not isinstance(record.get("metrics"), list):
        return
    kept = record.get("filtered_resps")
    answers = kept[0] if isinstance(kept, list) and len(kept) == 1 else None
    if not isinstance(answers, list) or len(answers) != len(value):
        raise UsageError(f"{field}: expected one value for each answer, got a list of {len(value)}")


def value_of(record: Mapping[str, Any], field: str, default: Any = None) -> Any:
    """The value of a field; of `a.b`, which no field is called, that of b in the object a.

    Args:
      record: The record.
      field: The field.
      default: What is returned where there is none.

    >>> value_of({"doc": {"id": 3}}, "doc.id"), value_of({"doc.id": 4, "doc": {"id": 3}}, "doc.id")
    (3, 4)
    """
    if field in record or "." not in field:
        return record.get(field, default)
    value: Any = record
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return default
        value = value[name]
    return value


def _problem(record: Mapping[str, Any], field: str) -> Hashable:
    # Most have the field itself, and are many.
    value: Any = record.get(field)
    if type(value) is str or type(value) is int:
        return value
    value = value_of(record, field)
    kind = type(value)
    if kind is str or kind is int or (kind is float and math.isfinite(value)):
        return value
    if kind is list or kind is dict:
        # In a tuple, for a text may say the same.
        return (json.dumps(value, sort_keys=True),)
    raise UsageError(
        f"{field}: expected text, a number, a list or an object, got {_shown(record, field)}"
    )


def score_of(value: Any, sample: Mapping[str, Any], field: str) -> float:
    """The number that a score stands for, NaN if none; the sample and its field are for errors.

    Raises:
      UsageError: If it stands for none.
    """
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
    value = value_of(record, field, _MISSING)
    if value is _MISSING:
        return f"a record that has only {', '.join(record)}"
    return shortened(repr(value))
