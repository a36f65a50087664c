"""`Run`: one folder from the first update to the summary, over any number of restarts."""

import contextlib
import io
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import jax
from ml_collections import ConfigDict

from maxpo import parallel
from maxpo.runs._checkpoints import (
    Checkpoints,
    DamagedCheckpointError,
    describe_leaves,
    first_difference,
    freed,
    without_weak_types,
)
from maxpo.runs._config import UsageError, differences, flatten
from maxpo.runs._files import LOCK, TEMPORARY, lock, read_json, to_json, write_atomic, write_json
from maxpo.runs._loggers import Loggers, Place, check_loggers
from maxpo.runs._metrics import MetricsFile, head_as_saved, lines_up_to
from maxpo.runs._preemption import GO_ON, Preempted, is_asked_for
from maxpo.runs._progress import say, show
from maxpo.runs._table import Rows, format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

State = TypeVar("State")

READS = 5  # of a checkpoint that its run may be removing
PAUSE = 0.1  # seconds between two of them


class Run:
    """A run's folder, held by this process until the `with` block ends.

    On a pod every process opens it, after `jax.distributed.initialize`, and makes the same calls.

    Attributes:
      folder: where it is, absolute.
      summary: what `finish` stored, or None while the run is not finished.
    """

    opened: ClassVar[int] = 0  # how many were opened in this process; `main` asks

    def __init__(
        self,
        config: ConfigDict | Mapping[str, Any],
        workdir: str | os.PathLike[str],
        *,
        keep: int = 3,
        loggers: Sequence[str] = (),
    ):
        """Creates the folder, or takes up the run that is in it.

        Args:
          config: what the run is, and what tells it from another.
          workdir: the folder, on a local or mounted filesystem.
          keep: how many of the last checkpoints to keep.
          loggers: who else gets the numbers of each line of metrics: any of "tensorboard", "wandb",
            "trackio", each of which needs the extra of its name. One that fails while the run goes
            on is reported on stderr and gets no more.

        Raises:
          ValueError: If a logger is unknown.
          MissingExtraError: If the package of a logger is missing.
          UsageError: If the folder holds a run with another config, naming the fields that differ,
            or anything that is no run; or if another process has it. The folder is not touched.
          Preempted: If SIGTERM has come to a process of a pod; see `preemptible`.
        """
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        check_loggers(loggers)
        if "://" in str(workdir):
            raise UsageError(f"workdir: expected a local or mounted folder, got {workdir}")
        self.folder = Path(workdir).expanduser().absolute()
        self.summary: dict[str, Any] | None = None
        self._primary = jax.process_index() == 0
        self._lock: int | None = None
        self._metrics: MetricsFile | None = None
        self._timings: MetricsFile | None = None
        self._records: dict[str, MetricsFile] = {}  # of `append`
        self._appended: dict[str, int] = {}  # their bytes as of the last checkpoint
        self._given_up: set[str] = set()  # those that cannot be written
        self._loggers = Loggers(loggers)
        self._resumed = 0  # the step of the checkpoint that was restored
        self._checkpoints = Checkpoints(self.folder / "checkpoints", keep)
        self._leaves: dict[str, str] | None = None  # the types in the state, once restored
        self._saved = -1  # the step of the last checkpoint
        self._logged = -1  # the step of the last line of metrics
        self._figures: dict[str, Callable[[], Figure]] = {}  # to be drawn by `finish`
        if is_asked_for():
            say(f"SIGTERM: stopped before {self.folder}; {GO_ON}")
            raise Preempted
        fields = to_json(config.to_dict() if isinstance(config, ConfigDict) else config, "config")
        self._config = fields
        try:
            if not parallel.is_same_everywhere(json.dumps([fields, str(self.folder)])):
                raise UsageError(
                    "all processes must have the same config and workdir; process "
                    f"{jax.process_index()} has {self.folder} with {json.dumps(fields)}"
                )
            self._take_first(fields)
            # Process 0 may write it at any time from here on: all must see what it saw.
            if parallel.from_first_process(str((self.folder / "summary.json").exists())) == "True":
                self.summary = _read_own(
                    self.folder / "summary.json", "remove it to have it written once more"
                )
                say(f"{self.folder} holds a finished run; there is nothing left to do")
        except BaseException:
            self.close()
            raise
        Run.opened += 1

    def _take_first(self, config: dict[str, Any]) -> None:
        """Has process 0 take the folder; all raise what went wrong there."""
        problem = ""
        try:
            if self._primary:
                self._take(config)
        except UsageError as error:
            problem = str(error)
            if jax.process_count() == 1:
                raise
        if problem := parallel.from_first_process(problem):
            raise UsageError(problem)

    def _take(self, config: dict[str, Any]) -> None:
        """Locks the folder, and writes the config if it is new."""
        _check_folder(self.folder, config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"workdir: cannot create {self.folder}: {error.strerror}") from error
        self._lock = lock(self.folder)
        # Once more: another process may have begun a run here before the lock was ours.
        if _check_folder(self.folder, config):
            write_json(self.folder / "config.json", config)
        for path in self.folder.glob(f".*{TEMPORARY}"):  # what a kill left
            path.unlink()

    @property
    def finished(self) -> bool:
        """Whether the summary is written: there is nothing left to do but `report`."""
        return self.summary is not None

    def restore(self, initial_state: State, *, donate: bool = False) -> tuple[State, int]:
        """Returns the state to go on from and the number of updates that are done.

        The state is that of the last checkpoint that is complete and whole, or `initial_state`, and
        `metrics.jsonl` is cut back to what it was then.

        Args:
          initial_state: a pytree of arrays, typed PRNG keys and numbers, holding everything the
            loop carries from one update to the next. It also says what leaves come back as: their
            types, and the devices of those arrays that are bound to some.
          donate: whether its arrays are freed before a checkpoint is read, so that there are never
            two states in memory.

        Returns:
          The state and the step.

        Raises:
          UsageError: If the checkpoint's leaves are not those of `initial_state`.
          OSError: If there are checkpoints and none can be used.
        """
        self._check_unfinished()
        if self._leaves is not None:
            raise RuntimeError("restore must be called once, before log and save")
        like = state = without_weak_types(initial_state)
        leaves = describe_leaves(like)
        damaged: list[tuple[int, DamagedCheckpointError]] = []
        steps = self._checkpoints.steps()
        if donate and steps:
            like = freed(state)
        for step in reversed(steps):
            try:
                state, record = self._checkpoints.load(step, like)
                self._open_metrics_of_first(record["metrics_bytes"], record.get("metrics_checksum"))
            except DamagedCheckpointError as error:
                damaged.append((step, error))
                continue
            for bad, reason in damaged:
                say(f"warning: skipped the checkpoint of step {bad}, which is damaged: {reason}")
                self._checkpoints.delete(bad)
            self._appended = dict(record.get("appended_bytes", {}))
            say(f"resuming {self.folder} after step {step}")
            self._saved = step
            break
        else:
            if damaged:
                raise OSError(
                    f"none of the {len(damaged)} checkpoints in {self.folder / 'checkpoints'} can "
                    f"be used, the last one because of {damaged[0][1]}; to start over choose "
                    "another workdir"
                )
            self._open_metrics(0, 0)
            say(f"starting a run in {self.folder}")
        self._leaves = leaves
        self._resumed = max(self._saved, 0)
        return state, self._resumed

    def last_state(self, like: State, *, donate: bool = False) -> tuple[State, int]:
        """Returns the state of the last checkpoint of a finished run, for what comes after it.

        Args:
          like: a state of the same structure, as for `restore`.
          donate: as for `restore`.

        Returns:
          The state and the step.

        Raises:
          UsageError: If the checkpoint's leaves are not those of `like`.
          OSError: If there is no checkpoint, or the last one cannot be used.
        """
        if self.summary is None:
            raise RuntimeError(f"{self.folder} is not finished: use restore")
        steps = self._checkpoints.steps()
        if not steps:
            raise OSError(f"the finished run {self.folder} has no checkpoint")
        like = without_weak_types(like)
        try:
            state, _ = self._checkpoints.load(steps[-1], freed(like) if donate else like)
        except DamagedCheckpointError as error:
            raise OSError(
                f"{self.folder / 'checkpoints' / str(steps[-1])} cannot be used: {error}; remove "
                "the run's folder to do it again"
            ) from error
        return state, steps[-1]

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **metrics}` to `metrics.jsonl`.

        Args:
          step: the number of updates that are done, not before that of the last line, and after
            that of the last `save`: a run resumed from that checkpoint could not know of a line
            that came later.
          metrics: numbers, strings, arrays, and lists and dicts of these. A metric that is a time
            makes the file differ between a run and the same run resumed.

        Raises:
          ValueError: If the step is saved already, or before that of the last line.
          OSError: If it cannot be written; earlier lines are still there.
        """
        self._check_unfinished()
        if step <= self._saved:
            raise ValueError(f"log must come before save: {self._saved} is saved, got step {step}")
        if step < self._logged:
            raise ValueError(
                f"step: expected at least that of the last line, {self._logged}, got {step}"
            )
        if "step" in metrics:
            raise ValueError("metrics must not have a 'step' of their own")
        if not self._primary:
            return
        if self._metrics is None:
            # Nothing was restored: an experiment without checkpoints, which begins again each time.
            if self._checkpoints.steps():
                raise RuntimeError(f"{self.folder} has checkpoints: call restore before log")
            self._open_metrics(0, 0)
            assert self._metrics is not None
        self._metrics.append({"step": int(step), **metrics})
        first = self._resumed + 1 if self._resumed else 0
        place = Place(self.folder, self._config, first)
        self._loggers.log(place, int(step), metrics)
        self._logged = int(step)

    def log_timings(self, step: int, timings: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **timings}` to `timings.jsonl`: what no two runs have in common.

        Seconds, and all that is computed from them. A resumed run drops the lines of steps after
        its checkpoint and goes on from there. Lines are not waited for to be on the disk.

        Args:
          step: the number of updates that are done.
          timings: as the metrics of `log`.

        Raises:
          OSError: If it cannot be written; earlier lines are still there.
        """
        self._check_unfinished()
        if "step" in timings:
            raise ValueError("timings must not have a 'step' of their own")
        if not self._primary:
            return
        if self._timings is None:
            path = self.folder / "timings.jsonl"
            self._timings = MetricsFile(path, lines_up_to(path, self._resumed))
        self._timings.append({"step": int(step), **timings})

    def append(self, name: str, step: int, record: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **record}` to `NAME.jsonl`: what is there to be read by people.

        A resumed run drops the lines that came after its checkpoint and goes on from there. What
        cannot be written is reported on stderr, once, and left out: it ends no run.

        Args:
          name: the file's, such as "completions".
          step: the number of updates that are done.
          record: as the metrics of `log`, without a "step".
        """
        self._check_unfinished()
        if not self._primary or name in self._given_up:
            return
        try:
            file = self._records.get(name)
            if file is None:
                path = self.folder / f"{name}.jsonl"
                # Lines of its last step may have come after the checkpoint; and a line that comes
                # before one is not waited for, and may be lost where a machine fails.
                head = lines_up_to(path, self._resumed)[: self._appended.get(name, 0)]
                file = self._records[name] = MetricsFile(path, head)
            file.append({"step": int(step), **record})
        except OSError as error:
            self._given_up.add(name)
            say(f"warning: {name}.jsonl gets no more lines, and the run goes on: {error}")

    def keep_best(self, step: int, state: Any) -> None:
        """Keeps a state in `best/`, in the place of the one before, beside the last checkpoints.

        A run that was stopped after that and is resumed before it comes to the same step once more,
        with the same state: what is there then is left as it is.

        Args:
          step: the number of updates that are done.
          state: a pytree, as for `save`; it may be a part of the run's.

        Raises:
          OSError: If it cannot be written; the one before is still there.
        """
        self._check_unfinished()
        best = Checkpoints(self.folder / "best", 1)
        try:
            if step > max(best.steps(), default=-1):
                best.save(int(step), without_weak_types(state), {})
        finally:
            best.close()

    def stop_asked(self) -> bool:
        """Whether SIGTERM asks for a save after this step; on a pod, where all must call it, any's.

        For loops that do not save after each step: `if step % 100 == 0 or run.stop_asked()`.
        """
        return is_asked_for()

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint of the state after `step` updates; on the disk when it returns.

        Raises:
          ValueError: If the step is not after the last one, or the state would not come back as it
            is because a leaf has another type than at `restore`, naming it.
          OSError: If it cannot be written; earlier checkpoints are still there.
          Preempted: When it is on the disk, if SIGTERM has come; see `preemptible`.
        """
        self._check_unfinished()
        if self._leaves is None:
            raise RuntimeError("restore must be called before save")
        if step <= self._saved:
            raise ValueError(
                f"step: expected one after that of the last save, {self._saved}, got {step}"
            )
        difference = first_difference(self._leaves, describe_leaves(state))
        if difference:
            raise ValueError(f"every leaf must keep its type to be resumed, state{difference}")
        size = checksum = 0
        if self._metrics is not None:
            # The checkpoint says how much of the metrics belongs to it: that must be there first.
            self._metrics.sync()
            size, checksum = self._metrics.size, self._metrics.checksum
        self._appended.update({name: file.size for name, file in self._records.items()})
        files = {
            "metrics_bytes": size,
            "metrics_checksum": checksum,
            "appended_bytes": self._appended,
        }
        self._checkpoints.save(int(step), state, files)
        self._saved = int(step)
        if self.stop_asked():
            say(f"SIGTERM: saved step {step} in {self.folder}; {GO_ON}")
            raise Preempted

    def figure(self, name: str, draw: "Callable[[], Figure] | Figure") -> Path:
        """Has `finish` draw a matplotlib figure and save it as `name.png`; returns that path.

        It is drawn when the summary is written, and a figure that cannot be drawn or saved is
        reported on stderr: it costs neither the summary nor the figures after it.

        Args:
          name: letters, digits and any of "_.-".
          draw: returns the figure, and is called in every process of a pod; or the figure itself.
            Make it with `matplotlib.figure.Figure()`, not pyplot: nothing needs to be closed then,
            and no display is looked for.
        """
        self._check_unfinished()
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"name: expected letters, digits and any of _.-, got {name!r}")
        self._figures[name] = draw if callable(draw) else lambda: draw
        return self.folder / f"{name}.png"

    def _draw(self) -> None:
        """Draws and saves what `figure` was given; whatever fails is reported."""
        for name, draw in self._figures.items():
            try:
                figure = draw()
                if self._primary:
                    content = io.BytesIO()
                    figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
                    write_atomic(self.folder / f"{name}.png", content.getvalue())
            except Exception:
                say(
                    f"{traceback.format_exc()}warning: the figure {name} was not drawn, and all "
                    f"else is there; to draw it, remove {self.folder / 'summary.json'} and start "
                    "the run again"
                )
        self._figures.clear()

    def finish(self, summary: Mapping[str, Any], *, table: Rows | None = None) -> dict[str, Any]:
        """Writes `summary.json`, which makes the run a finished one, draws figures and reports.

        Args:
          summary: what came out, anything `log` takes. One that maps names to figures of the same
            kinds is printed as a table with a row for each name.
          table: rows, as for `format_table`, stored as the summary's "table" and printed in the
            place of the summary.

        Returns:
          The summary as it is stored, also in `self.summary`.
        """
        self._check_unfinished()
        if table is not None:
            if "table" in summary:
                raise ValueError("the summary must have no 'table' where a table is given")
            summary = {**summary, "table": table}
        stored: dict[str, Any] = to_json(summary, "summary")
        if self._primary:
            if self._metrics is not None:
                self._metrics.sync()
            write_json(self.folder / "summary.json", stored)
        parallel.from_first_process("written")  # No process goes on before it is.
        self.summary = stored
        self._draw()
        return self.report()

    def report(self) -> dict[str, Any]:
        """Prints the table of a finished run and where its figures are; returns the summary."""
        if self.summary is None:
            raise RuntimeError(f"{self.folder} is not finished: there is nothing to report yet")
        if self._primary:
            rows = self.summary.get("table")
            if rows is None and all(isinstance(row, dict) for row in self.summary.values()):
                rows = self.summary
            elif rows is None:
                rows = [
                    {"": name, "value": value}
                    for name, value in flatten(self.summary).items()
                    if not isinstance(value, list)
                ]
            paths = [*sorted(self.folder.glob("*.png")), self.folder / "summary.json"]
            show("\n".join([format_table(rows), *map(str, paths)]))
        return self.summary

    def close(self) -> None:
        """Writes out the metrics and gives the folder back."""
        known = (self._metrics, self._timings, *self._records.values())
        files = [file for file in known if file is not None]
        self._metrics = self._timings = None
        self._records.clear()
        descriptor, self._lock = self._lock, None
        try:
            self._loggers.close()
            self._checkpoints.close()
            for file in files:
                file.close()
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError):
                self._withdraw()
        self.close()

    def _withdraw(self) -> None:
        """Leaves the folder to any other run, if nothing has come of this one.

        What ended it may be a mistake in the config, which is then another one.
        """
        if not self._primary or self._lock is None:
            return
        own = self.folder / "config.json"
        rest = [path for path in self.folder.iterdir() if path not in (own, self.folder / LOCK)]
        if not all(map(_is_nothing, rest)):
            return
        for path in rest:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        own.unlink()

    def _check_unfinished(self) -> None:
        if self.summary is not None:
            raise RuntimeError(f"{self.folder} is finished: return run.report() if run.finished")

    def _open_metrics_of_first(self, size: int, checksum: int | None) -> None:
        """Opens the metrics in process 0; all raise what went wrong there."""
        problem = ""
        try:
            self._open_metrics(size, checksum)
        except DamagedCheckpointError as error:
            problem = str(error)
        if problem := parallel.from_first_process(problem):
            raise DamagedCheckpointError(problem)

    def _open_metrics(self, size: int, checksum: int | None) -> None:
        """Opens the metrics with their first `size` bytes."""
        if not self._primary:
            return
        path = self.folder / "metrics.jsonl"
        head = head_as_saved(path, size, checksum)
        if head is None:
            held = path.stat().st_size if path.exists() else 0
            raise DamagedCheckpointError(
                f"{path}, which holds {held} bytes, is not as it was at the save"
            )
        self._metrics = MetricsFile(path, head)


def _is_nothing(path: Path) -> bool:
    """Whether it is a file without a line, no checkpoints, or a run that was withdrawn."""
    if not path.is_dir():
        return path.suffix == ".jsonl" and not path.stat().st_size
    return {inner.name for inner in path.iterdir()} <= {LOCK}


def _check_folder(folder: Path, config: dict[str, Any]) -> bool:
    """Returns whether a run would be new in the folder; touches nothing.

    Raises:
      UsageError: If there is something else.
    """
    if not folder.exists():
        return True
    if not folder.is_dir():
        raise UsageError(f"workdir: expected a folder, got the file {folder}")
    if (folder / "config.json").exists():
        stored = _read_own(folder / "config.json", "to start over choose another workdir")
        changed = differences(stored, config)
        if changed:
            raise UsageError(
                f"{folder} holds a run with another config, {folder / 'config.json'}: "
                f"{'; '.join(changed)}; use its config to resume it, or choose another workdir"
            )
        return False
    # A kill before the first config was written leaves these.
    ours = (path.name == LOCK or path.name.endswith(TEMPORARY) for path in folder.iterdir())
    if not all(ours):
        raise UsageError(
            f"{folder} is neither empty nor the folder of a run; choose another workdir"
        )
    return True


def _read_own(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file that this package wrote; a UsageError if it is damaged."""
    try:
        return read_json(path)
    except UsageError as error:
        raise UsageError(f"{error}; {remedy}") from None


def read_checkpoint(
    folder: str | os.PathLike[str], like: State, *, step: int | None = None, best: bool = False
) -> tuple[State, int]:
    """Returns a state that a run has saved. The run may be going on; nothing of it is changed.

    Args:
      folder: the run's.
      like: a part of the state, as for `Run.restore`, or `jax.ShapeDtypeStruct`s in the place of
        its arrays; with `best` of what `keep_best` got. Leaves that it does not have are not read.
      step: the checkpoint's. None: the last one that is complete.
      best: what `keep_best` has kept, in the place of a checkpoint.

    Returns:
      The state and the step.

    Raises:
      UsageError: If there is no such checkpoint, naming those there are, or its leaves are not
        those of `like`.
      OSError: If it is damaged, or the run removes one after the other while they are read.
    """
    place = Path(folder) / ("best" if best else "checkpoints")
    what = "best parameters" if best else "a checkpoint"
    what += "" if step is None else f" of step {step}"
    reads = 0
    while True:
        kept = Checkpoints(place, 1, read_only=True)  # A new one, as it lists the steps once.
        try:
            steps = kept.steps()
            if not steps or (step is not None and step not in steps):
                there = f"those of steps {', '.join(map(str, steps))}" if steps else "none"
                raise UsageError(f"{folder}: expected a run with {what}, got {there}")
            chosen = steps[-1] if step is None else step
            return kept.load(chosen, without_weak_types(like), part=True)[0], chosen
        except DamagedCheckpointError as error:
            reads += 1
            left = _steps_in(place)
            # The last one is not removed by its run. Any other may be, file by file.
            if left[-1:] == [chosen] or reads == READS:
                fate = f"is damaged: {error}" if chosen in left else "was removed while it was read"
                raise OSError(f"{folder}: the checkpoint of step {chosen} {fate}") from error
            time.sleep(PAUSE)
        finally:
            kept.close()


def _steps_in(place: Path) -> list[int]:
    """The steps of the checkpoints that are there now."""
    kept = Checkpoints(place, 1, read_only=True)
    try:
        return kept.steps()
    finally:
        kept.close()
