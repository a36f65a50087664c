"""Reads files of JSON lines: one strict JSON object a line, in UTF-8, plain or in gzip."""

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from maxpo.lm.tasks._strict_json import parse_json
from maxpo.lm.tasks.text import shown

__all__ = ["read_json_lines"]

_OWN_LINE = "write each object on a line of its own"
_GZIP = b"\x1f\x8b"
# How files begin that are no JSON lines.
_MAGIC = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "a Parquet file within gzip",  # One that is not is read elsewhere.
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    _GZIP: "gzip within gzip",
}


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, each after its place, as "file:line"; skips blank lines.

    Raises:
      ValueError: If a line is no JSON object, or the file is no text in UTF-8, with the place.
    """
    place = f"{path}:1"
    try:
        for number, line in enumerate(_lines(path), start=1):
            place = f"{path}:{number}"
            if line.strip():
                yield place, _object(place, line)
    except (OSError, EOFError, zlib.error) as error:  # Cannot be read, or is damaged gzip.
        after = f"{place}: expected JSON lines, plain or in gzip, from here on"
        raise ValueError(f"{after}, got {error}") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, without a byte-order mark."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if file.read(len(_GZIP)) == _GZIP:
            stack.enter_context(unpacked := gzip.GzipFile(path))
            file = cast(IO[bytes], unpacked)
        file.seek(0)
        start = file.read(8)
        for magic, name in _MAGIC.items():
            if start.startswith(magic):
                raise ValueError(f"{path}:1: expected JSON lines in UTF-8, got {name}")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        yield from file


def _object(place: str, line: bytes) -> dict[str, Any]:
    """The object of a line."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"{place}: expected a JSON object, got {what}")

    if b"\0" in line:
        raise refuse("NUL bytes, as of UTF-16 or of a damaged file; write UTF-8")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise refuse(f"what is no utf-8: byte {byte:#x} in column {error.start + 1}") from error
    try:
        entry = parse_json(text)
    except json.JSONDecodeError as error:
        if text.startswith("["):
            raise refuse(f"the start of an array; {_OWN_LINE}") from error
        if not text.startswith("{"):
            raise refuse(f"the text {shown(text)}") from error
        column = f"in column {error.colno} of {shown(text)}"
        raise refuse(f"{error.msg} {column}; an object must be whole on its line") from error
    except ValueError as error:
        raise refuse(str(error)) from error
    if not isinstance(entry, dict):
        raise refuse(shown(entry) + (f", an array; {_OWN_LINE}" if text[0] == "[" else ""))
    return entry
