"""Faults that happen to a program, and what is found after each of them.

A row is a start of the program: what happened to it, from which step it went on and which was saved
by then. Where a start ended the program by itself, its results are compared with those of one that
nothing happened to.
"""

import contextlib
import itertools
import math
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxpo.studies.jobs import Row
from maxpo.studies.reliability.folders import (
    differences,
    has_finished,
    resumed_steps,
    saved_steps,
)
from maxpo.studies.reliability.programs import Ending, Program

__all__ = ["FAULTS", "Subject", "undisturbed"]

# A signal may come before the program can catch it, and after its end.
_CODES = {
    "": (0,),
    "kill": (0, -signal.SIGKILL),
    "term": (0, -signal.SIGTERM, 128 + signal.SIGTERM),
    "full disk": (0, 1, 2),
    "damage": (0, 1, 2),
}


class Subject(NamedTuple):
    """A program under test.

    Attributes:
      name: One of `programs.PROGRAMS`.
      home: The folder of the study.
      reference: The folder of the program that nothing happened to.
      seconds: How long it takes then.
    """

    name: str
    home: Path
    reference: Path
    seconds: float

    def start(self, workdir: Path) -> Program:
        """Starts the program in a folder."""
        return Program(self.name, self.home, workdir)

    @contextlib.contextmanager
    def new_folder(self, fault: str) -> Iterator[Path]:
        """A folder for a program, removed at the end of the block."""
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-{fault}-", dir=self.home) as folder:
            yield Path(folder, "run")


def undisturbed(name: str, home: Path) -> Subject:
    """Runs a program twice, to compare with it and to time it.

    Raises:
      RuntimeError: If it does not do the same again.
    """
    subject = Subject(name, home, home / name, math.nan)
    with subject.new_folder("undisturbed") as folder:
        for workdir in (subject.reference, folder):
            with subject.start(workdir) as program:
                ending = program.end()
            _check_code(ending, "", workdir)
        found = differences(folder, subject.reference)
    if found:
        raise RuntimeError(f"{name}: expected the same results twice, got others: {found}")
    return subject._replace(seconds=ending.seconds)  # With programs that are compiled.


def kills(subject: Subject, count: int, rng: np.random.Generator) -> Iterator[Row]:
    """SIGKILL, `count` times."""
    return _interruptions(subject, "kill", lambda child: child.kill(), count, rng)


def terms(subject: Subject, count: int, rng: np.random.Generator) -> Iterator[Row]:
    """SIGTERM, `count` times."""
    return _interruptions(subject, "term", lambda child: child.terminate(), count, rng)


def full_disks(subject: Subject, count: int, rng: np.random.Generator) -> Iterator[Row]:
    """A disk that takes no further byte, `count` times; there is room at the next start."""

    def fill(child: Any) -> None:
        # No file of the process may grow, whoever writes it. The error is another one than that of
        # a disk without room, EFBIG for ENOSPC.
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, hard))

    return _interruptions(subject, "full disk", fill, count, rng)


def damages(subject: Subject, count: int, rng: np.random.Generator) -> Iterator[Row]:
    """A file of a stopped run that is cut or has another bit, `count` times."""
    kinds = itertools.cycle(("arrays", "metadata", "metrics.jsonl", "config.json"))
    with _stopped(subject) as (stopped, run):
        for _, kind in zip(range(count), kinds, strict=False):
            with subject.new_folder("damage") as folder:
                shutil.copytree(stopped, folder)
                path = _file_of(folder / run, kind, rng)
                what = _damage(path, rng)
                with subject.start(folder) as program:
                    ending = program.end()
                _check_code(ending, "damage", folder)
                yield {
                    "fault": "damage",
                    "damage": f"{path.relative_to(folder)} {what}",
                    "code": ending.code,
                    "unnamed": str(path) not in ending.printed,
                    **_compared(subject, folder),
                }


def _interruptions(
    subject: Subject,
    fault: str,
    happen: Callable[[Any], None],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Row]:
    """Starts a program again and again, with a fault at a random moment of most starts."""
    while count:
        saved: dict[str, int] = {}
        with subject.new_folder(fault.replace(" ", "-")) as folder:
            while not has_finished(folder):
                moment = rng.uniform(0, subject.seconds) if count else None
                with subject.start(folder) as program:
                    happened = moment is not None and program.runs_for(moment)
                    if happened:
                        happen(program.process)
                        count -= 1
                    ending = program.end()
                _check_code(ending, fault if happened else "", folder)
                yield {
                    "fault": fault if happened else "",
                    "moment": moment,
                    **_found(folder, saved, ending, fault if happened else ""),
                    **_compared(subject, folder),
                }


def _found(folder: Path, saved: dict[str, int], ending: Ending, fault: str) -> Row:
    """What a start did; updates `saved`, the last steps that were saved before it."""
    resumed = resumed_steps(ending.printed)
    lost = sum(max(0, saved.get(run, 0) - step) for run, step in resumed.items())
    before = {Path(run).name: step for run, step in saved.items()}
    for run, step in saved_steps(folder, ending.printed).items():
        saved[run] = max(saved.get(run, 0), step)
    return {
        "code": ending.code,
        "saved before": before,
        "resumed": {Path(run).name: step for run, step in resumed.items()},
        "lost": lost,
        "unnamed": ending.code > 0 and fault != "term" and str(folder) not in _message(ending),
    }


def _check_code(ending: Ending, fault: str, folder: Path) -> None:
    """Raises RuntimeError if a program ended as it should not, such as by a crash."""
    if ending.code not in _CODES[fault]:
        raise RuntimeError(f"{folder}: exit code {ending.code}: {ending.printed[-2000:]}")


def _message(ending: Ending) -> str:
    """The error: the frames of a traceback name files of the program, not those of the run."""
    if "Traceback" in ending.printed:
        return ending.printed.rpartition("Traceback")[2]
    return "".join(ending.printed.splitlines()[-1:])


@contextlib.contextmanager
def _stopped(subject: Subject) -> Iterator[tuple[Path, Path]]:
    """A program that SIGTERM has stopped in the middle of its last run, and that run's folder."""
    last, total = list(saved_steps(subject.reference).items())[-1]
    run = Path(last).relative_to(subject.reference)
    code = 0
    while code != 128 + signal.SIGTERM:
        with subject.new_folder("stopped") as folder:
            with subject.start(folder) as program:
                while saved_steps(folder).get(str(folder / run), 0) < total // 2:
                    if not program.runs_for(0.01):
                        break
                program.process.terminate()
                code = program.end().code
            if code == 128 + signal.SIGTERM:
                yield folder, run


def _file_of(run: Path, kind: str, rng: np.random.Generator) -> Path:
    """A file of the last checkpoint, the arrays or another one; or a file of the run itself."""
    if kind not in ("arrays", "metadata"):
        return run / kind
    checkpoint = run / "checkpoints" / str(saved_steps(run)[str(run)])
    sizes = {path: path.stat().st_size for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    arrays = max((checkpoint / "state").rglob("*"), key=lambda path: sizes.get(path, 0))
    others = [path for path, size in sizes.items() if size and path != arrays]
    return arrays if kind == "arrays" else others[rng.integers(len(others))]


def _damage(path: Path, rng: np.random.Generator) -> str:
    """Cuts a file or flips one of its bits, and says which."""
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    if rng.integers(2):
        bit = int(rng.integers(8))
        content[place] ^= 1 << bit
        what = f"bit {bit} of byte {place} flipped"
    else:
        del content[place:]
        what = f"cut to {place} bytes"
    path.write_bytes(content)
    return what


def _compared(subject: Subject, folder: Path) -> Row:
    """Which results differ from those of the reference, where the program has come to its end."""
    if not has_finished(folder):
        return {}
    return {"differing": differences(folder, subject.reference)}


FAULTS = {"kills": kills, "terms": terms, "full_disks": full_disks, "damages": damages}
"""By the name of their number in the config; each yields rows."""
