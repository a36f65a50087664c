"""An open GGUF file: metadata by name, checked for type, and tensors by name."""

from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from maxpo._extras import missing_extra

__all__ = ["GGUFFile"]

T = TypeVar("T")

_KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", list: "a list"}
# What the package raises on its way through a file that ends early or holds nonsense.
_DAMAGES = (ValueError, IndexError, KeyError, OverflowError)


class GGUFFile:
    """A GGUF file, mapped into memory: its tensors are read when they are asked for.

    Args:
      path: The file.

    Attributes:
      path: The file.
      architecture: Which models its tensors are of, such as "llama".
      tensors: `gguf.ReaderTensor` by name.

    Raises:
      MissingExtraError: If the package `gguf` is missing.
      ValueError: If the file is missing, damaged, no GGUF file, or not the whole of a model.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError as error:
            raise missing_extra("import_gguf", "gguf", "gguf", error) from error
        if not path.is_file():
            raise ValueError(f"expected a GGUF file, got {path}, which is none")
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(
                f"expected {path} to begin as a GGUF file, with b'GGUF', got {magic!r}"
            )
        try:
            self._reader = gguf.GGUFReader(path)
        except _DAMAGES as error:
            raise ValueError(f"{path} is not a whole GGUF file: {error}") from None
        self.path = path
        # The package would read the numbers of the other order as if they were of this one.
        if self._reader.endianess != gguf.GGUFEndian.LITTLE:
            self.refuse("byte order", "'little'", "big")
        parts = self.optional("split.count", int) or 1
        if parts > 1:
            self.refuse("split.count", "a whole model, as llama-gguf-split --merge writes", parts)
        self.architecture = self.required("general.architecture", str)
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def required(self, name: str, kind: type[T]) -> T:
        """The metadata of that name; ValueError if there is none or it is of another type."""
        value = self.optional(name, kind)
        if value is None:
            raise ValueError(f"{self.path} has no metadata {name}")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The metadata of that name, or None; ValueError if it is of another type."""
        field = self._reader.fields.get(name)
        if field is None:
            return None
        value = field.contents()
        if type(value) is not kind:
            self.refuse(name, _KINDS[kind], value)
        return value

    def refuse(self, name: str, expected: str, value: Any) -> NoReturn:
        """Raises the ValueError for metadata that do not fit."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:80] + "..."
        raise ValueError(f"{self.path}: {name}: expected {expected}, got {shown}")

    def rows(self, name: str, selected: slice | np.ndarray) -> np.ndarray:
        """Rows of a tensor, or elements of a vector, as float32 numbers.

        Raises:
          ValueError: If the package `gguf` cannot turn the tensor's type into numbers.
        """
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            return dequantize(tensor.data[selected], tensor.tensor_type).astype(
                np.float32, copy=False
            )
        except NotImplementedError:
            self.refuse(name, "a type that the package gguf reads", tensor.tensor_type.name)
