"""Other programs that get what a run logs. `metrics.jsonl` has it all, whatever they do."""

import importlib
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from maxpo._extras import missing_extra
from maxpo.runs._config import flatten
from maxpo.runs._files import to_json, write_atomic
from maxpo.runs._progress import say

ID = ".logger_id"
PROJECT = "maxpo"


class Place(NamedTuple):
    """The run that is logged.

    Attributes:
      folder: Its folder.
      config: Its config, as JSON has it.
      first_step: The first step that will be logged: later ones are of a run that was killed.
    """

    folder: Path
    config: dict[str, Any]
    first_step: int


class _TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, place: Place):
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(
            str(place.folder / "tensorboard"),
            purge_step=place.first_step,
            flush_secs=10,
            # A name has the second: a run that is started again within it would replace the file.
            filename_suffix=f".{time.time_ns()}",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """A run of a package with the interface of wandb."""

    def __init__(self, run: Any):
        self._run = run

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


Logger = _TensorBoard | _Tracker


def _wandb(place: Place) -> Logger:
    run = importlib.import_module("wandb").init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=place.folder.name,
        id=_id(place.folder),
        dir=str(place.folder),
        config=place.config,
        resume="allow",
    )
    return _Tracker(run)


def _trackio(place: Place) -> Logger:
    # Its runs are known by their names alone.
    name = f"{place.folder.name}-{_id(place.folder)[:6]}"
    module = importlib.import_module("trackio")
    return _Tracker(module.init(project=PROJECT, name=name, config=place.config, resume="allow"))


class _Kind(NamedTuple):
    """How to open a logger, and the package that it needs; the extra has the logger's name."""

    open: Callable[[Place], Logger]
    package: str


LOGGERS = {
    "tensorboard": _Kind(_TensorBoard, "tensorboardX"),
    "wandb": _Kind(_wandb, "wandb"),
    "trackio": _Kind(_trackio, "trackio"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Imports the packages of loggers.

    Raises:
      ValueError: If a name is unknown or there twice.
      MissingExtraError: If a package is missing.
    """
    if isinstance(names, str):
        raise ValueError(f"loggers: expected a sequence of names, got {names!r}")
    for number, name in enumerate(names):
        if name not in LOGGERS:
            raise ValueError(f"loggers: expected some of {', '.join(LOGGERS)}; got {name!r}")
        if name in names[:number]:
            raise ValueError(f"loggers: expected each once, got {name!r} twice")
        package = LOGGERS[name].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(f"loggers={name}", package, name, error) from error


class Loggers:
    """Loggers that are opened at the first line; one that fails is reported once and dropped."""

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._open: dict[str, Logger] | None = None

    def log(self, place: Place, step: int, metrics: Mapping[str, Any]) -> None:
        """Sends the numbers of a line.

        Args:
          place: The run; read at the first line.
          step: The line's step.
          metrics: Anything else than a finite number is left out.
        """
        if not self._names:
            return
        if self._open is None:
            self._open = {}
            for name in self._names:
                self._try(name, partial(self._start, name, place))
        numbers = _numbers(metrics)
        for name, logger in list(self._open.items()):
            self._try(name, partial(logger.log, step, numbers))

    def close(self) -> None:
        """Ends all of them."""
        for name, logger in list((self._open or {}).items()):
            self._try(name, logger.close)
        self._open = None

    def _start(self, name: str, place: Place) -> None:
        assert self._open is not None
        self._open[name] = LOGGERS[name].open(place)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # Whatever it is, it is not worth the run.
            assert self._open is not None
            self._open.pop(name, None)
            say(
                f"warning: the logger {name} failed and gets no more of this run, all of which is "
                f"in metrics.jsonl: {type(error).__name__}: {error}"
            )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among metrics, nested ones under their dotted names.

    >>> _numbers({"loss": 0.5, "phase": "a", "bad": float("nan"), "ratio": {"mean": 1}})
    {'loss': 0.5, 'ratio.mean': 1}
    """
    return {
        name: value
        for name, value in flatten(to_json(metrics, "metrics")).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _id(folder: Path) -> str:
    """What a run is known by elsewhere, the same after each restart."""
    path = folder / ID
    if not path.exists():
        write_atomic(path, uuid.uuid4().hex.encode())
    return path.read_text()
