"""The files of a checkpoint: opened to be read, and replaced so that no half of one is read."""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxpo import runs
from maxpo._extras import missing_extra
from maxpo.lm.model._checkpoint_config import CONFIG
from maxpo.lm.model._safetensors import StoredTensor, header, list_tensors

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_NAMED = 4  # How many tensors a message names.
_UNFINISHED = ".unfinished"  # The folder of files that are being written.


def import_safetensors(caller: str) -> ModuleType:
    """The package, for `caller`, which its error names."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise missing_extra(caller, "safetensors", "lm", error) from error
    return safetensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint."""
    if not path.parent.is_dir():
        raise ValueError(f"expected the folder of a checkpoint, got {path.parent}, which is none")
    if not path.is_file():
        raise ValueError(f"expected {path.name} in {path.parent}, which has none")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(fields).__name__}")
    return fields


def find_tensors(folder: Path, safetensors: ModuleType) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name."""
    found: dict[str, StoredTensor] = {}
    for name in _weight_files(folder):
        found |= list_tensors(folder / name, safetensors)
    return found


def _weight_files(folder: Path) -> list[str]:
    if (folder / _SINGLE).is_file():
        return [_SINGLE]
    if not (folder / _INDEX).is_file():
        raise ValueError(f"expected {_SINGLE} or {_INDEX} in {folder}, got neither")
    index = read_json(folder / _INDEX).get("weight_map")
    if index is None:
        raise ValueError(f"{folder / _INDEX} has no weight_map")
    if not isinstance(index, dict) or not all(isinstance(x, str) for x in index.values()):
        raise ValueError(
            f"{folder / _INDEX}: weight_map: expected an object of file names by tensor, got "
            f"{json.dumps(index)[:80]}"
        )
    names = sorted(set(index.values()))
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / _INDEX} names {name}, which is not in the folder")
    return names


def listed(problems: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with tensors, for a message: some of the names for each kind."""
    return "; ".join(
        f"{what}: {', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for what, names in problems.items()
        if names
    )


def replace_checkpoint(
    folder: Path,
    fields: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """Writes a checkpoint, in the place of an older one.

    All is written beside it first. Then the older `config.json` goes before any other file, and the
    new one comes after all others: without it the folder is no checkpoint.

    Args:
      folder: Where to; created if need be.
      fields: What `config.json` holds.
      shapes: The tensors' by name.
      arrays: The tensors, in the order of `shapes`. One is held at a time.
      dtype: Theirs, "float32" or "bfloat16".
      max_shard_bytes: Most bytes of tensors in a file, unless one alone has more.

    Raises:
      OSError: If a file cannot be written, naming it; an older checkpoint is still there.
    """
    unfinished = folder / _UNFINISHED
    if unfinished.exists():  # Of a save that was killed.
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        bytes_each = jnp.dtype(dtype).itemsize
        sizes = {name: bytes_each * math.prod(shape) for name, shape in shapes.items()}
        shards = _shards(sizes, max_shard_bytes)
        remaining = iter(arrays)
        for name, tensors in shards.items():
            first = header({tensor: shapes[tensor] for tensor in tensors}, dtype)
            numbers = (
                array.view(np.uint8).data for _, array in itertools.islice(remaining, len(tensors))
            )
            _write(unfinished / name, itertools.chain([first], numbers))
        names = [*shards]
        if len(shards) > 1:
            files = {tensor: name for name, tensors in shards.items() for tensor in tensors}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
            write_json(unfinished / _INDEX, index)
            names.append(_INDEX)
        write_json(unfinished / CONFIG, fields)

        (folder / CONFIG).unlink(missing_ok=True)
        runs.sync(folder)
        for path in [path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)]:
            path.unlink()
        for name in names:
            (unfinished / name).replace(folder / name)
        runs.sync(folder)
        (unfinished / CONFIG).replace(folder / CONFIG)
        runs.sync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _shards(sizes: Mapping[str, int], max_bytes: int) -> dict[str, list[str]]:
    """Which tensors each file holds, by its name."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write(path, [(json.dumps(value, indent=2) + "\n").encode()])


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file to the disk. A full one is found out here, not when the file is renamed."""
    try:
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
