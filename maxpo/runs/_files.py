"""Files that survive a kill: strict JSON, atomic replacement, a lock per folder."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from maxpo.runs._config import UsageError

LOCK = ".lock"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
TEMPORARY = ".maxpo-tmp"  # the end of the name of a file that is not written completely yet


def to_json(value: Any, name: str = "value") -> Any:
    """Returns `value` as what strict JSON can hold.

    NumPy and JAX scalars become numbers, arrays lists, tuples lists, keys strings. Floats that are
    not finite, for which JSON has no number, become the strings "NaN", "Infinity", "-Infinity".

    Args:
      value: scalars, strings, None, arrays, and mappings and sequences of these.
      name: what the value is called in an error.

    Raises:
      TypeError: If it is anything else, naming where it is.

    >>> to_json({"loss": np.float32(0.5), "worst": [float("inf"), (1, None)]})
    {'loss': 0.5, 'worst': ['Infinity', [1, None]]}
    """
    if hasattr(value, "dtype"):
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biuU":
                # bfloat16 and its like are no floats by their kind, but they can be cast to one.
                array = array.astype(np.float64, casting="safe")
            value = array.tolist()
        except TypeError:
            pass  # a complex number, a typed key: named below
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, f"{name}[{index}]") for index, item in enumerate(value)]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise TypeError(
        f"{name}: expected numbers, strings, lists or dicts, which JSON has, got {kind}"
    )


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` atomically with `value` as indented JSON."""
    text = json.dumps(to_json(value, path.stem), indent=2, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`; a UsageError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} should hold a JSON object but cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path`: a reader, and a kill at any moment, finds the old file or the new one.

    Raises:
      OSError: If it cannot be written, naming `path`; what was there before is still there.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` at the end of the block, as `write_atomic` does."""
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with errors_name(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Makes the OSErrors of its block name the file they are about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def sync(path: Path) -> None:
    """Waits until `path` is on the disk: a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until everything in `folder`, and its own name, is on the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
    sync(folder.parent)


def lock(folder: Path) -> int:
    """Takes the folder for this process and returns the descriptor that holds it.

    The kernel gives it back when the descriptor is closed, so also when the process is killed.

    Raises:
      UsageError: If another run, in this process or another, has it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with errors_name(folder / LOCK):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 32).decode(errors="replace") or "?"
                raise UsageError(
                    f"{folder} is in use by the run of process {owner}; "
                    "wait for its end or choose another workdir"
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
