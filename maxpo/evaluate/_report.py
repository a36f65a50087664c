"""An evaluation as text and as JSON."""

import math
from typing import Any

import numpy as np

from maxpo.evaluate._curves import Curve
from maxpo.evaluate._evaluation import Evaluation, Metric, Source
from maxpo.runs import format_table

__all__ = ["metrics_of", "to_json", "to_text"]


def metrics_of(evaluation: Evaluation) -> dict[str, Metric]:
    """The metrics to be shown: max@k only where it is not pass@k."""
    found = {"pass@k": evaluation.pass_at_k}
    return found | {"max@k": evaluation.max_at_k} if evaluation.graded else found


def _columns(metric: Metric) -> dict[str, Curve]:
    """The curves of a metric, then its differences, under the names of their columns."""
    first = next(iter(metric.curves))
    named = {f"{label} - {first}": curve for label, curve in metric.differences.items()}
    return metric.curves | named


def to_text(evaluation: Evaluation) -> str:
    """What was read, and a table of each metric with what there is to know about its values."""
    lines = [_read(label, source) for label, of in evaluation.sources.items() for source in of]
    lines += [
        f"{label}: {path}: not used, it has no such record as --where asks for"
        for label, paths in evaluation.unused.items()
        for path in paths
    ]
    parts = ["\n".join(lines)]
    for name, metric in metrics_of(evaluation).items():
        lines = [_table(name, _columns(metric)), *_notes(metric)]
        if name == "pass@k" and evaluation.graded and not _any_correct(metric):
            lines.append("no score is as high as --success, so no sample is correct")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The same as what JSON can hold; null where there is no value."""
    return {
        "sources": {
            label: [_source(source) for source in sources]
            for label, sources in evaluation.sources.items()
        },
        "unused": {label: list(map(str, paths)) for label, paths in evaluation.unused.items()},
        **{
            name: {
                kind: {label: _curve(curve) for label, curve in curves.items()}
                for kind, curves in metric._asdict().items()
            }
            for name, metric in metrics_of(evaluation).items()
        },
    }


def _read(label: str, source: Source) -> str:
    """What was read from a file. A method without a name has that of its file."""
    fields = source.fields
    score = fields.score if fields.samples is None else f"{fields.samples}.{fields.score}"
    named = "" if label == str(source.path) else f"{label}: "
    decides = "" if fields.deciding is None else f"; success: {fields.deciding}"
    unscored = f", {source.unscored} without a score" if source.unscored else ""
    return (
        f"{named}{source.path}: {source.samples} samples of {source.problems} problems{unscored} "
        f"(problem: {','.join(fields.problem)}; score: {score}{decides})"
    )


def _table(name: str, columns: dict[str, Curve]) -> str:
    ks = next(iter(columns.values())).k
    rows = []
    for i, k in enumerate(ks.tolist()):
        row: dict[str, Any] = {name: k}
        for label, curve in columns.items():
            row[label] = float(curve.value[i]) if curve.problems[i] else None
            row[f"{label}_sem"] = float(curve.error[i])
        rows.append(row)
    return format_table(rows)


def _notes(metric: Metric) -> list[str]:
    """Which values are missing, or not those of all problems."""
    first = next(iter(metric.curves))
    found = [_left_out(label, curve) for label, curve in metric.curves.items()]
    for label, curve in metric.differences.items():
        name = f"{label} - {first}"
        both = metric.curves[label].problems.any() and metric.curves[first].problems.any()
        found.append(
            f'{name}: the two have no problem in common (7 is not the same as "7")'
            if both and not curve.problems.any()
            else _left_out(name, curve)
        )
    return list(filter(None, found))


def _any_correct(metric: Metric) -> bool:
    return any(np.nan_to_num(curve.value).any() for curve in metric.curves.values())


def _left_out(label: str, curve: Curve) -> str:
    """Which values are not those of all problems; nothing if all are."""
    ks_of: dict[int, list[str]] = {}
    for k, left_out in zip(curve.k.tolist(), curve.left_out.tolist(), strict=True):
        if left_out:
            ks_of.setdefault(left_out, []).append(str(k))
    if not ks_of:
        return ""
    counts = "; ".join(f"{count} at k={','.join(ks)}" for count, ks in ks_of.items())
    return f"left out, of {curve.problems[0] + curve.left_out[0]} problems of {label}: {counts}"


def _source(source: Source) -> dict[str, Any]:
    return source._asdict() | {"path": str(source.path), "fields": source.fields._asdict()}


def _curve(curve: Curve) -> dict[str, list[Any]]:
    columns = {name: values.tolist() for name, values in curve._asdict().items()}
    return {
        name: [None if isinstance(x, float) and math.isnan(x) else x for x in values]
        for name, values in columns.items()
    }
