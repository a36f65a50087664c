"""Files of safetensors: tensors that are read by slices, and written one after another.

The package reads a slice into a copy and keeps the whole file mapped, which counts as memory of the
process. Here a slice is a view of a mapping of its own, which goes with it.
"""

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["FLOATS", "Index", "StoredTensor", "copy", "empty", "header", "list_tensors"]

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""Dtypes of floating-point numbers by their names in files."""

Index = tuple[slice, ...]

_CODES = {jnp.dtype(dtype): name for name, dtype in FLOATS.items()}
_TILE = 128  # Numbers in a run: as many lines of what is read stay in the cache.


class StoredTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
      path: The file.
      dtype: As the file names it, one of `FLOATS` or any other.
      shape: Its shape.
      offset: Its first byte.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self, index: Index) -> np.ndarray:
        """A slice of it, read from the disk as far as it is looked at."""
        whole = np.memmap(self.path, FLOATS[self.dtype], "r", self.offset, self.shape)
        return whole[index].view(np.ndarray)


def list_tensors(path: Path, safetensors: ModuleType) -> dict[str, StoredTensor]:
    """The tensors of a file by name.

    Args:
      path: The file.
      safetensors: The package, which checks all that a header can say wrong.

    Raises:
      ValueError: If the file is damaged or no such file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    return {
        name: StoredTensor(
            path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    """What a file begins with, before the numbers of its tensors in this order.

    Args:
      shapes: The tensors' by name.
      dtype: What all are stored as, "float32" or "bfloat16".
    """
    stored = jnp.dtype(dtype)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # What transformers asks for.
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * stored.itemsize
        entries[name] = {"dtype": _CODES[stored], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # Numbers begin where processors like them to.
    return len(text).to_bytes(8, "little") + text


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Memory that begins with a page: on a CPU, JAX takes such arrays over without a copy.

    Its pages are of the size that the system prefers. NumPy's own memory asks for huge ones, and on
    a machine that was busy for long they may take longer to be found than to be filled.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Sets one array to another of the same shape, cast to its dtype.

    Last axes that are stored in another order are transposed in tiles, several times as fast as
    by NumPy's assignment, which reads a number from each of thousands of lines in turn.
    """
    if target.ndim < 2 or _is_narrow(target) == _is_narrow(source):
        target[...] = source
        return
    for leading in np.ndindex(target.shape[:-2]):
        to, of = target[leading], source[leading]
        if _is_narrow(to):
            to, of = to.T, of.T
        for start in range(0, to.shape[1], _TILE):
            tile = slice(start, start + _TILE)
            to[:, tile] = of[:, tile].astype(to.dtype, copy=False)


def _is_narrow(array: np.ndarray) -> bool:
    """Whether numbers that are neighbors in memory stand below each other."""
    return array.strides[-2] < array.strides[-1]
