"""Scores of the problems of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxpo.evaluate._fields import Fields, find_fields, problem_of, scores_of
from maxpo.evaluate._parts import Part, choose_parts, part_fields, part_of
from maxpo.evaluate._records import records
from maxpo.evaluate._values import Samples
from maxpo.runs import UsageError

__all__ = ["Reader", "Scores"]


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

    def __call__(self, path: Path) -> Scores:
        """Reads a file.

        Raises:
          UsageError: If it cannot be read, a record has no problem or no score, or records are of
            several models.
        """
        fields: Fields | None = None
        names = part_fields(self._chosen)
        parts: dict[Part, tuple[list[int], list[float]]] = {}
        numbers = self.numbers
        for place, record in records(path):
            try:
                if fields is None:
                    fields = find_fields(record, problem=self._problem, score=self._score)
                problem = numbers.setdefault(problem_of(record, fields), len(numbers))
                found = scores_of(record, fields)
            except UsageError as error:
                raise UsageError(f"{place}: {error}") from None
            part = part_of(record, names)
            if part not in parts:
                parts[part] = [], []
            problems, scores = parts[part]
            problems += [problem] * len(found)
            scores += found
        if fields is None:
            raise UsageError(f"{path}: expected at least one record, got none")
        kept = choose_parts(parts, names, self._chosen, path)
        samples = Samples(
            np.concatenate([np.array(parts[part][0], np.int64) for part in kept]),
            np.concatenate([np.array(parts[part][1], np.float64) for part in kept]),
        )
        if not len(samples.score):
            raise UsageError(f"{path}: expected at least one score, got none")
        return Scores(path, fields, samples)
