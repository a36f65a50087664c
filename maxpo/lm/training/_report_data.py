"""What a report is made of: the files of a run, read while it may still go on."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from maxpo import runs
from maxpo.lm.training import folders
from maxpo.runs import UsageError

COMPLETIONS = f"{folders.COMPLETIONS}.jsonl"
TRAIN = "train"

T = TypeVar("T")


class Completion(NamedTuple):
    """A sample.

    Attributes:
      text: What the model wrote.
      score: The verifier's; None where it failed.
      correct: Whether it counts for pass@k; None where its line does not say so.
      reward: What was maximized, or None.
      advantage: Its weight in the loss; None of held-out problems.
      truncated: Whether the limit of tokens ended it.
      failure: Why the verification failed, or None.
      tokens: Its length.
    """

    text: str
    score: float | None
    correct: bool | None
    reward: float | None
    advantage: float | None
    truncated: bool
    failure: str | None
    tokens: int | None


class Group(NamedTuple):
    """The completions of one prompt at one step; `split` is "train" or "held_out"."""

    step: int
    split: str
    prompt: str
    answer: str
    completions: list[Completion]


class RunData(NamedTuple):
    """One run.

    Attributes:
      name: The name of its folder.
      config: Its config, nested.
      lines: What it has logged.
      summary: None while it is not finished.
      groups: Some of its groups of completions, in order.
      group_count: How many there are.
      first_failure: The first message of a failed verification, "" if none is known.
      age: Seconds since it wrote last, or None.
    """

    name: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    summary: dict[str, Any] | None
    groups: list[Group]
    group_count: int
    first_failure: str
    age: float | None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of steps of reinforcement learning."""
        return [line for line in self.lines if "mean_reward" in line]

    @property
    def step(self) -> int:
        """The step of the last line."""
        return self.lines[-1].get("step", 0) if self.lines else 0

    @property
    def total(self) -> int | None:
        """How many steps the run will have."""
        found = self.setting("rl.steps")
        found = self.setting("sft.steps") if found is None else found
        return found if isinstance(found, int) else None

    @property
    def success(self) -> float | None:
        """The score from which a completion is correct."""
        found = self.setting("task.success")
        found = self.setting("success") if found is None else found
        return number(found)

    def setting(self, name: str) -> Any:
        """The value of a field of the config under its dotted name; None if there is none."""
        found: Any = self.config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


def read_runs(folder: Path, most_groups: int) -> list[RunData]:
    """The run of a folder, and those in its folders.

    Args:
      folder: Of a run, or of a study.
      most_groups: How many groups of completions are kept, of all runs together.

    Raises:
      UsageError: If there is no run, or none has logged anything.
    """
    if not folder.is_dir():
        raise UsageError(f"RUN: expected the folder of a run, got {folder}")
    # Of a model's folders in a run the config is another thing.
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    members = [each for each in found if each.name not in (folders.SHAPE, folders.HF)]
    if (folder / "config.json").exists():
        members = [folder, *members]
    if not members:
        raise UsageError(f"RUN: expected the folder of a run, with a config.json, got {folder}")
    indices = {each: _index(each / COMPLETIONS) for each in members}
    share = most_groups // max(1, sum(bool(index) for index in indices.values()))
    data = [_read_run(each, index, max(1, share)) for each, index in indices.items()]
    if not any(run.lines or run.groups for run in data):
        raise UsageError(
            f"{folder}: expected a run that has logged something, got neither metrics nor "
            "completions"
        )
    return data


def number(value: Any) -> float | None:
    """A finite number of JSON, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


class _Place(NamedTuple):
    """Where the line of a group starts, and what it holds."""

    step: int
    split: str
    offset: int
    failure: str


def _read_run(folder: Path, index: list[_Place], most_groups: int) -> RunData:
    try:
        lines = runs.read_metrics(folder)
    except ValueError as error:
        raise UsageError(str(error)) from None
    summary = folder / "summary.json"
    written = [
        path.stat().st_mtime
        for path in (folder / "metrics.jsonl", folder / COMPLETIONS, summary)
        if path.exists()
    ]
    return RunData(
        folder.resolve().name,
        runs.read_json(folder / "config.json"),
        lines,
        runs.read_json(summary) if summary.exists() else None,
        _read_groups(folder / COMPLETIONS, choose(index, most_groups)),
        len(index),
        next((place.failure for place in index if place.failure), ""),
        max(0.0, time.time() - max(written)) if written else None,
    )


def _index(path: Path) -> list[_Place]:
    """The places of all groups: the file may be larger than the memory."""
    return [
        _Place(
            group.step,
            group.split,
            offset,
            next((each.failure for each in group.completions if each.failure), ""),
        )
        for offset, group in _groups(path)
    ]


def _groups(path: Path) -> Iterator[tuple[int, Group]]:
    """The groups of a file with their offsets; a line that holds none is skipped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        offset = 0
        for line in file:
            if group := _parse(line):
                yield offset, group
            offset += len(line)


def _read_groups(path: Path, places: Sequence[_Place]) -> list[Group]:
    if not places:
        return []
    with path.open("rb") as file:
        groups = []
        for place in places:
            file.seek(place.offset)
            # A run that was resumed in this moment may have cut the file.
            if group := _parse(file.readline()):
                groups.append(group)
    return groups


def choose(places: Sequence[_Place], most: int) -> list[_Place]:
    """Places of as many steps as possible, then of as many groups of each, in their order."""
    layers: dict[int, list[_Place]] = {}
    seen: dict[tuple[str, int], int] = {}
    for place in places:
        rank = seen[place.split, place.step] = seen.get((place.split, place.step), -1) + 1
        layers.setdefault(rank, []).append(place)
    kept: list[_Place] = []
    for layer in layers.values():
        kept += _spread(layer, most - len(kept))
    return sorted(kept, key=lambda place: place.offset)


def _spread(items: list[T], most: int) -> list[T]:
    """At most that many of the items, from the first to the last in equal distances."""
    if len(items) <= most:
        return items
    gap = (len(items) - 1) / max(1, most - 1)
    return [items[len(items) - 1 - round(gap * i)] for i in reversed(range(most))]


def _parse(line: bytes) -> Group | None:
    """The group of a line, or None: the last one may be cut anywhere."""
    try:
        found = json.loads(line.decode(errors="replace"))
        completions = [_completion(each) for each in found["completions"]]
        step = int(found["step"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return Group(
        step,
        _text(found.get("split")) or TRAIN,
        _text(found.get("prompt")),
        _text(found.get("answer")),
        completions,
    )


def _completion(fields: dict[str, Any]) -> Completion:
    tokens = number(fields.get("tokens"))
    return Completion(
        text=_text(fields.get("text")),
        score=number(fields.get("score")),
        correct=fields["correct"] if isinstance(fields.get("correct"), bool) else None,
        reward=number(fields.get("reward")),
        advantage=number(fields.get("advantage")),
        truncated=fields.get("end") == "truncated",
        failure=_text(fields.get("failure")) or None,
        tokens=None if tokens is None else int(tokens),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
