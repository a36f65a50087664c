"""Records of a file: JSON lines or a JSON list, plain or gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from maxpo.runs import UsageError

__all__ = ["records", "where"]

Record = dict[str, Any]

BLOCK = 1 << 20  # Characters that are decoded at a time.


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields the objects of a file with their numbers, which `where` turns into a place.

    `.json` is a list of objects; everything else has one on each line, and blank lines are skipped.
    `.gz` at the end of a name is gzip.

    Raises:
      UsageError: If the file cannot be read, or holds something else; it says where.
    """
    try:
        with _open(path) as file:
            yield from _of_list(path, file) if _is_list(path) else _of_lines(path, file)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: expected text in UTF-8, got {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: expected a file to read, got {error.strerror}") from None


def where(path: Path, number: int) -> str:
    """The place of a record, as `file:line`, or as `file[index]` in a list."""
    return f"{path}[{number}]" if _is_list(path) else f"{path}:{number}"


def _is_list(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".json")


def _open(path: Path) -> IO[str]:
    # Some editors put a mark of the byte order first, which utf-8-sig skips.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _of_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, Record]]:
    number = 0
    while lines := file.readlines(BLOCK):
        for line, found in zip(lines, _decoded(lines), strict=True):
            number += 1
            if len(found) == 1 and type(found[0]) is dict:
                yield number, found[0]
            elif found:
                raise _unexpected(path, number, line.strip())


def _decoded(lines: list[str]) -> list[list[Any]]:
    """What each line holds: a value, or nothing where it is blank."""
    try:
        # Faster than line by line. Brackets around each keep a record from spanning two lines.
        found = json.loads(f"[[{'],['.join(lines)}]]")
        if len(found) == len(lines):
            return found
    except ValueError:
        pass
    return [_decoded_line(line) for line in lines]


def _decoded_line(line: str) -> list[Any]:
    """A value, None where it is broken, or nothing."""
    try:
        return [json.loads(line)]
    except ValueError:
        return [None] if line.strip() else []


def _of_list(path: Path, file: IO[str]) -> Iterator[tuple[int, Record]]:
    try:
        found = json.loads(file.read())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: expected a JSON list, got {error.msg}") from None
    if not isinstance(found, list):
        raise UsageError(f"{path}: expected a JSON list of objects, got {type(found).__name__}")
    for number, record in enumerate(found):
        if not isinstance(record, dict):
            raise _unexpected(path, number, json.dumps(record))
        yield number, record


def _unexpected(path: Path, number: int, text: str) -> UsageError:
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return UsageError(f"{where(path, number)}: expected a JSON object, got {shown}")
