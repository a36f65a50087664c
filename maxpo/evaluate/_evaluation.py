"""`evaluate`: from files to curves."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxpo.evaluate._curves import Curve, curve, difference
from maxpo.evaluate._fields import Fields
from maxpo.evaluate._reading import Reader, Scores
from maxpo.evaluate._records import is_standard_input
from maxpo.evaluate._values import Samples, joined, least_correct, values_of_problems
from maxpo.runs import UsageError

__all__ = ["Evaluation", "Metric", "Source", "evaluate"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

LARGEST = 2**53  # Above that a float does not tell a number from the next.


class Source(NamedTuple):
    """What was read from a file.

    Attributes:
      path: The file.
      fields: Its fields.
      samples: The number of samples.
      problems: The number of problems.
      unscored: The number of samples without a score.
    """

    path: Path
    fields: Fields
    samples: int
    problems: int
    unscored: int


class Metric(NamedTuple):
    """pass@k or max@k.

    Attributes:
      curves: The curve of each method.
      differences: The curve of each method but the first, less that of the first, on the problems
        that both have.
    """

    curves: dict[str, Curve]
    differences: dict[str, Curve]


class Evaluation(NamedTuple):
    """What `evaluate` finds.

    Attributes:
      sources: What was read for each method.
      pass_at_k: The probability that any of k samples is correct.
      max_at_k: The expected best score of k samples.
      graded: Whether there are scores other than 0 and 1, or other numbers that decide on success;
        without them max@k is pass@k.
      unused: Files of each method without any record that `where` asks for.
    """

    sources: dict[str, tuple[Source, ...]]
    pass_at_k: Metric
    max_at_k: Metric
    graded: bool
    unused: dict[str, tuple[Path, ...]]


def evaluate(
    files: Mapping[str, Paths] | str | os.PathLike[str],
    *,
    k: int | Iterable[int] | None = None,
    problem: str | None = None,
    score: str | None = None,
    where: Mapping[str, str | float] | None = None,
    success: float = 1.0,
    pool: bool = False,
) -> Evaluation:
    """Unbiased pass@k and max@k of the samples in files.

    Args:
      files: The file of each method by its label, or its files, one for each seed; "-" is standard
        input. A path alone is a method with that path for a label.
      k: The number of samples whose best counts, or several; if None 1, 2, 4, .. up to the most
        that a problem has, and those if all have as many. A problem with fewer than k samples is
        left out at that k, and counted.
      problem: The field that tells problems apart, or several with commas between them; found by a
        file's first record if None.
      score: The field with the score; found by a file's first record if None.
      where: Field to value of the records that are read, such as {"split": "held_out"}; "last" is
        the largest number that a method has, and "*" any value. Files without such a record are
        not used.
      success: The score from which a sample is correct.
      pool: Whether the files of a method are samples of one model: those of a problem are then put
        together. Without it they are seeds, whose values are averaged.

    Raises:
      ValueError: If an argument is wrong, or a file cannot be read, with the file and the line.
    """
    methods = _methods(files)
    chosen_ks = None if k is None else _ks(k)
    for name, value in (("problem", problem), ("score", score)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name}: expected the name of a field, got {value!r}")
    if not isinstance(success, Real) or not -math.inf < success < math.inf:
        raise UsageError(f"success: expected a finite number, got {success!r}")
    reader = Reader(problem, score, _where(where))
    read = {label: reader(label, paths) for label, paths in methods.items()}
    samples = {label: [one.samples for one in found.scores] for label, found in read.items()}
    seeds = {label: [joined(found)] if pool else found for label, found in samples.items()}
    every = [one for of_method in seeds.values() for one in of_method]
    ks = np.array(chosen_ks or _powers(every), np.int64)
    count = len(reader.numbers)
    least = least_correct(float(success))
    grids = {label: _grid(of_method, ks, count, least) for label, of_method in seeds.items()}
    present = {label: grid.present for label, grid in grids.items()}
    return Evaluation(
        {label: tuple(map(_source, found.scores)) for label, found in read.items()},
        _metric(ks, {label: grid.passes for label, grid in grids.items()}, present),
        _metric(ks, {label: grid.bests for label, grid in grids.items()}, present),
        any(map(_is_graded, every)),
        {label: tuple(found.unused) for label, found in read.items()},
    )


class _Grid(NamedTuple):
    """Values of a method.

    Attributes:
      passes: `[S, P, K]`, pass@k of each seed and problem; NaN where it is left out.
      bests: `[S, P, K]`, max@k.
      present: `[P]`, whether any of the seeds has the problem.
    """

    passes: np.ndarray
    bests: np.ndarray
    present: np.ndarray


def _methods(files: Mapping[str, Paths] | str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The files of each method."""
    if isinstance(files, str | os.PathLike):
        files = {str(files): files}
    if not isinstance(files, Mapping):
        raise UsageError(f"files: expected a path, or labels with paths, got {files!r}")
    if not files:
        raise UsageError("files: expected at least one, got none")
    methods = {label: _paths(label, paths) for label, paths in files.items()}
    every = [path for paths in methods.values() for path in paths]
    if sum(map(is_standard_input, every)) > 1:
        raise UsageError("-: expected standard input once, got it for several labels")
    return methods


def _ks(k: int | Iterable[int]) -> list[int]:
    """Different numbers of samples, ascending."""
    found: list[Any] = list(k) if isinstance(k, Iterable) else [k]
    for value in found:
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or value < 1:
            raise UsageError(f"k: expected whole numbers of at least 1, got {value!r}")
        if value > LARGEST:
            raise UsageError(f"k: expected whole numbers up to 2**53, got {value!r}")
    if not found:
        raise UsageError("k: expected at least one number of samples, got none")
    return sorted(set(map(int, found)))


def _where(where: Mapping[str, str | float] | None) -> dict[str, str]:
    """Field to value, as text."""
    if where is None:
        return {}
    if not isinstance(where, Mapping):
        raise UsageError(f"where: expected fields with values, got {where!r}")
    for field, value in where.items():
        if not isinstance(field, str) or not isinstance(value, str | int | float):
            raise UsageError(
                f"where: expected a field with text or a number, got {field!r}: {value!r}"
            )
    return {field: str(value) for field, value in where.items()}


def _paths(label: str, paths: Paths) -> list[Path]:
    if not isinstance(label, str):
        raise UsageError(f"files: expected labels that are text, got {label!r}")
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(several, Iterable):
        raise UsageError(f"files: expected a path or several of {label}, got {paths!r}")
    found = []
    for path in several:
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"files: expected paths of {label}, got {path!r}")
        found.append(Path(path))
    if not found:
        raise UsageError(f"files: expected at least one of {label}, got none")
    seen: set[Path] = set()
    for path in found:
        # A file has many names: through a folder and back, or through links.
        file = path if is_standard_input(path) else path.resolve()
        if file in seen:
            raise UsageError(f"files: expected different files of {label}, got {path} twice")
        seen.add(file)
    return found


def _powers(every: Sequence[Samples]) -> list[int]:
    """1, 2, 4, .. up to the most samples that a problem has, and those where all have as many.

    The last one is what the trainer's curves end with. Where numbers of samples differ, it would be
    a mean over few problems only.
    """
    sizes = np.concatenate([np.bincount(samples.problem) for samples in every])
    most, least = int(sizes.max()), int(sizes[sizes > 0].min())
    powers = {2**i for i in range(most.bit_length())}
    return sorted(powers | {most} if least == most else powers)


def _grid(seeds: Sequence[Samples], ks: np.ndarray, count: int, success: float) -> _Grid:
    found = [values_of_problems(samples, ks, count=count, success=success) for samples in seeds]
    present = np.zeros(count, bool)
    for samples in seeds:
        present[samples.problem] = True
    return _Grid(
        np.stack([values.passes for values in found]),
        np.stack([values.bests for values in found]),
        present,
    )


def _metric(
    ks: np.ndarray, values: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
) -> Metric:
    first, *others = values
    curves = {label: curve(ks, own[:, present[label]]) for label, own in values.items()}
    differences = {}
    for label in others:
        either = present[label] | present[first]
        differences[label] = difference(ks, values[label][:, either], values[first][:, either])
    return Metric(curves, differences)


def _is_graded(samples: Samples) -> bool:
    score, deciding = samples.score, samples.deciding
    if deciding is not score and not np.array_equal(deciding, score, equal_nan=True):
        return True
    return not np.all((score == 0) | (score == 1) | np.isnan(score))


def _source(scores: Scores) -> Source:
    return Source(
        scores.path,
        scores.fields,
        samples=len(scores.samples.score),
        problems=len(np.unique(scores.samples.problem)),
        unscored=int(np.isnan(scores.samples.score).sum()),
    )
