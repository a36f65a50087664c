"""Scores of the problems of files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from maxpo.evaluate._fields import Fields, find_fields, problem_of, scores_of
from maxpo.evaluate._parts import Part, choose_parts, part_fields, part_of
from maxpo.evaluate._records import records
from maxpo.evaluate._summary import is_summary, read_summary
from maxpo.evaluate._values import Samples, joined
from maxpo.runs import UsageError

__all__ = ["Read", "Reader", "Scores"]

DOC_ID: Final = ("doc_id",)
SUMMARY: Final = "held-out problem of a run"  # With its number a problem like no other file's.


class Scores(NamedTuple):
    """What is read from a file.

    Attributes:
      path: The file.
      fields: The fields that were read.
      samples: The samples.
    """

    path: Path
    fields: Fields
    samples: Samples


class Read(NamedTuple):
    """What is read of a label.

    Attributes:
      scores: Those of each file.
      unused: Files without any record of the part that was chosen.
    """

    scores: list[Scores]
    unused: list[Path]


_Key = tuple[int, Part]  # A problem and the part that a record of it is in.


class _Hash(NamedTuple):
    """A hash that lm-evaluation-harness has written, and where it stands first."""

    value: Any
    place: str


class _File(NamedTuple):
    path: Path
    fields: Fields
    parts: dict[Part, Samples]


class Reader:
    """Reads files, and gives a problem that several of them have the same number.

    Args:
      problem: The problem's fields, with commas between them; None: found by the first record.
      score: The score's field; None: found by the first record.
      chosen: Field to value of the records that are read, as `choose_parts` has it.

    Attributes:
      numbers: The number of each problem that was read.
    """

    def __init__(self, problem: str | None, score: str | None, chosen: Mapping[str, str]):
        self.numbers: dict[Any, int] = {}
        self._problem = problem
        self._score = score
        self._chosen = chosen
        self._names = part_fields(chosen)
        self._run: tuple[Path, int, str | None] | None = None
        self._documents: dict[_Key, _Hash] = {}
        self._targets: dict[_Key, _Hash] = {}

    def __call__(self, label: str, paths: Sequence[Path]) -> Read:
        """Reads the files of a label.

        Args:
          label: The label.
          paths: Its files, at least one.

        Raises:
          UsageError: If one cannot be read, a record has no problem or no score, records are of
            several models, or the same `doc_id` is that of several documents.
        """
        self._targets = {}
        files = [self._file(path) for path in paths]
        # Over all files: seeds of one method are compared at one step, and samples of one model
        # are those of one step, whichever files they are in.
        parts = dict.fromkeys(part for file in files for part in file.parts)
        name = str(paths[0]) if len(paths) == 1 else label
        kept = choose_parts(parts, self._names, self._chosen, name)
        read = Read([], [])
        for path, fields, of_file in files:
            found = [of_file[part] for part in kept if part in of_file]
            if not found:
                read.unused.append(path)
                continue
            samples = joined(found)
            if not len(samples.score):
                raise UsageError(f"{path}: expected at least one score, got none")
            read.scores.append(Scores(path, fields, samples))
        _check_fields(label, read.scores)
        return read

    def _file(self, path: Path) -> _File:
        fields: Fields | None = None
        names, numbers = self._names, self.numbers
        lines = records(path)
        nested = any("." in name for name in names)
        is_place = False
        parts: dict[Part, tuple[list[int], list[float]]] = {}
        for place, record in lines:
            if fields is None and is_summary(record):
                return self._summary(path, record, is_whole=next(lines, None) is None)
            try:
                if fields is None:
                    fields = find_fields(record, problem=self._problem, score=self._score)
                    is_place = fields.problem == DOC_ID
                problem = numbers.setdefault(problem_of(record, fields), len(numbers))
                found = scores_of(record, fields)
                part = part_of(record, names, nested=nested)
                if is_place:
                    self._check_document(place, record, (problem, part))
            except UsageError as error:
                raise UsageError(f"{place}: {error}") from None
            if part not in parts:
                parts[part] = [], []
            problems, scores = parts[part]
            problems += [problem] * len(found)
            scores += found
        if fields is None:
            raise UsageError(f"{path}: expected at least one record, got none")
        return _File(
            path,
            fields,
            {
                part: _samples(problems, scores, scores)
                for part, (problems, scores) in parts.items()
            },
        )

    def _summary(self, path: Path, record: Mapping[str, Any], *, is_whole: bool) -> _File:
        """The summary of a run, whose problems are those of every other one in their order."""
        if not is_whole:
            raise UsageError(f"{path}: expected the summary of one run, got several records")
        for name, field in (("problem", self._problem), ("score", self._score)):
            if field is not None:
                raise UsageError(f"{name}: expected none for the summary of a run, got {field}")
        found = read_summary(path, record)
        count, held_out = found.problems, found.held_out
        first = self._run or (path, count, held_out)
        is_known = first[2] is not None and held_out is not None
        if count != first[1] or (is_known and held_out != first[2]):
            raise UsageError(
                f"{path}: expected the held-out problems of {first[0]}, "
                f"{first[2] or f'{first[1]} problems'}, got {held_out or f'{count} problems'}"
            )
        # One whose problems are known tells more about the next.
        self._run = first if first[2] is not None else (path, count, held_out)
        numbers = [
            self.numbers.setdefault((SUMMARY, place), len(self.numbers)) for place in range(count)
        ]
        problem = [numbers[place] for place in found.problem]
        nothing = part_of({}, self._names, nested=False)
        samples = _samples(problem, found.score, found.deciding)
        return _File(path, found.fields, {nothing: samples})

    def _check_document(self, place: str, record: Mapping[str, Any], key: _Key) -> None:
        """Refuses two documents with one `doc_id`, which counts from 0 in every task.

        Those of different parts may differ: one file may have several tasks, of which one is
        chosen.

        Two tasks may ask for the same documents in two ways. That is a comparison between labels;
        within a label the answers that they ask for must be the same.
        """
        for name, seen in (("doc_hash", self._documents), ("target_hash", self._targets)):
            value = record.get(name)
            if value is None:
                continue
            first = seen.setdefault(key, _Hash(value, place))
            if value != first.value:
                raise UsageError(
                    f"{name}: expected {_start(first.value)} as of doc_id {record['doc_id']} in "
                    f"{first.place}, got {_start(value)}; read the samples of one task, or name "
                    "by --problem=doc.FIELD what tells its documents apart"
                )


def _check_fields(label: str, scores: Sequence[Scores]) -> None:
    """Refuses files of one label in which different fields were found."""
    for name in ("problem", "score"):
        found = [_field(one.fields, name) for one in scores]
        for field, one in zip(found, scores, strict=True):
            if field != found[0]:
                raise UsageError(
                    f"{label}: expected one field with the {name} in all files, got {found[0]} in "
                    f"{scores[0].path} and {field} in {one.path}; name one by --{name}"
                )


def _field(fields: Fields, name: str) -> str:
    return ",".join(fields.problem) if name == "problem" else fields.score


def _samples(problem: Sequence[int], score: Sequence[float], deciding: Sequence[float]) -> Samples:
    scores = np.array(score, np.float64)
    values = scores if deciding is score else np.array(deciding, np.float64)
    return Samples(np.array(problem, np.int64), scores, values)


def _start(value: Any) -> str:
    """Enough of a hash to find it."""
    return str(value)[:8]
