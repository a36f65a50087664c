"""`metrics.jsonl` and `timings.jsonl`: JSON lines, appended, and cut back when a run resumes."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maxpo.runs._files import NOT_FINITE, errors_name, sync, to_json


class MetricsFile:
    """Such a file, open for appending.

    Attributes:
      path: where it is.
      size: how many of its bytes are whole lines.
      checksum: CRC-32 of these.
    """

    def __init__(self, path: Path, head: bytes):
        """Opens it and drops all that comes after its first bytes, which are `head`."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._descriptor, len(head))
        self.size = len(head)
        self.checksum = zlib.crc32(head)
        self.sync()
        sync(path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line and hands it to the operating system.

        Raises:
          OSError: If it cannot be written, naming the file, which is as before.
        """
        line = json.dumps(to_json(record, "metrics"), allow_nan=False).encode() + b"\n"
        rest = memoryview(line)
        with errors_name(self.path):
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                os.ftruncate(self._descriptor, self.size)
                raise
        self.size += len(line)
        self.checksum = zlib.crc32(line, self.checksum)

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        with errors_name(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns what a run has logged so far, in order, with "NaN" and "Infinity" as floats again.

    The folder may be of a run that is still going on: a last line that is not complete is left out.

    Raises:
      ValueError: If a line is no JSON object, naming the first.
    """
    return _read_lines(Path(folder, "metrics.jsonl"))


def read_timings(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns what `Run.log_timings` has written so far, as `read_metrics` does."""
    return _read_lines(Path(folder, "timings.jsonl"))


def head_as_saved(path: Path, size: int, checksum: int | None) -> bytes | None:
    """Returns the first `size` bytes of the file; None if they are not as they were at the save.

    They are if they are there, end with a whole line and have this checksum, which is None in a run
    of an older version, which kept none.
    """
    head = b""
    if path.exists():
        with path.open("rb") as file:
            head = file.read(size)
    if len(head) < size or not (head.endswith(b"\n") or not head):
        return None
    return head if checksum in (None, zlib.crc32(head)) else None


def lines_up_to(path: Path, step: int) -> bytes:
    """Returns the lines of the steps up to `step` at the start of the file, if there is one.

    A line that a kill tore ends them, as does one of a later step.
    """
    content = path.read_bytes() if path.exists() else b""
    size = 0
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, LookupError, TypeError):
            break
        size += len(line)
    return content[:size]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append({key: _to_floats(value) for key, value in json.loads(line).items()})
        except (ValueError, AttributeError):
            raise ValueError(
                f"{path}:{number}: expected a JSON object, got {line[:80]!r}"
            ) from None
    return records


def _to_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_floats(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_floats(item) for key, item in value.items()}
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def check_finite(step: int, values: Any) -> None:
    """Stops training on the first value that is NaN or infinite.

    Args:
      step: the update after which the values were computed.
      values: a pytree of numbers and arrays, usually a dict; its keys name the value in the error.

    Raises:
      FloatingPointError: If one is not finite, naming the step, the value, and for an array where
        it is.

    >>> check_finite(7, {"loss": np.array([0.1, float("nan"), 0.2])})
    Traceback (most recent call last):
    ...
    FloatingPointError: loss[1] is nan at step 7; 1 of 3 values are not finite
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]:
        array = np.asarray(leaf).astype(np.float64)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
            index = f"[{', '.join(map(str, bad[0]))}]" if array.ndim else ""
            count = f"; {len(bad)} of {array.size} values are not finite" if array.ndim else ""
            raise FloatingPointError(
                f"{name}{index} is {array[tuple(bad[0])]} at step {step}{count}"
            )
