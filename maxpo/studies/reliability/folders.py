"""What a program has left in its folder: saved steps, and whether results are the same."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["differences", "has_finished", "resumed_steps", "saved_steps"]

_TIMES = re.compile(r"seconds|per_second|/s ")
_RESUMED = re.compile(r"^(?:resuming (.*) after step (\d+)|starting a run in (.*))$", re.MULTILINE)
_SAVED = re.compile(r"^SIGTERM: saved step (\d+) in (.*); start", re.MULTILINE)


def has_finished(folder: Path) -> bool:
    """Whether the program's own run is at its end."""
    return (folder / "summary.json").exists()


def saved_steps(folder: Path, printed: str = "") -> dict[str, int]:
    """The last step that is saved, by run: on the disk, or as far as the program has said so."""
    steps = {str(run): max(_steps(run)) for run in _runs(folder) if _steps(run)}
    for step, run in _SAVED.findall(printed):
        steps[run] = max(steps.get(run, 0), int(step))
    return steps


def resumed_steps(printed: str) -> dict[str, int]:
    """The step from which each run went on, as the program has said; 0: from the beginning."""
    return {run or new: int(step or 0) for run, step, new in _RESUMED.findall(printed)}


def differences(folder: Path, reference: Path) -> list[str]:
    """What is not bit for bit the same in two folders of one program, but for times.

    Compared are the metrics, the summaries and the last states of all of its runs.
    """
    found = []
    for run in _runs(reference):
        own = folder / run.relative_to(reference)
        for name in ("metrics.jsonl", "summary.json"):
            if _read(own / name) != _read(run / name):
                found.append(str(own / name))
        found += [f"{own}: {name}" for name in _different_leaves(own, run)]
    return found


def _runs(folder: Path) -> list[Path]:
    """The folders of the program's runs, its own and those of its stages, as they began."""
    # Nothing below them is looked at: a run that is going on removes checkpoints.
    folders = [folder, *(path for path in folder.glob("*") if path.is_dir())]
    configs = [path / "config.json" for path in folders]
    configs = [path for path in configs if path.exists()]
    return [path.parent for path in sorted(configs, key=lambda path: path.stat().st_mtime_ns)]


def _steps(run: Path) -> list[int]:
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return [int(name) for name in names if name.isdigit()]


def _read(path: Path) -> Any:
    if not path.exists():
        return None
    if path.suffix == ".jsonl":
        return path.read_bytes()
    return _without_times(json.loads(path.read_text()))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_times(item)
            for name, item in value.items()
            if not _TIMES.search(f"{name} ")
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _different_leaves(run: Path, reference: Path) -> list[str]:
    """The leaves of the last state that differ, read without anything of `maxpo.runs`."""
    if max(_steps(run), default=0) != max(_steps(reference), default=0):
        return ["the last step"]
    if not _steps(reference):
        return []
    states = [_last_state(folder) for folder in (run, reference)]
    if set(states[0]) != set(states[1]):
        return ["the leaves"]
    return [name for name, leaf in states[0].items() if leaf.tobytes() != states[1][name].tobytes()]


def _last_state(run: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(run / "checkpoints" / str(max(_steps(run))) / "state")
    return {name: np.asarray(leaf) for name, leaf in state.items()}
