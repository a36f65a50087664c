"""Records of a file: JSON lines or a JSON list, plain or gzipped."""

import codecs
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from maxpo.runs import UsageError

__all__ = ["is_standard_input", "records", "shortened"]

Record = dict[str, Any]

# Of text that is no JSON, a number of too many digits, and lists within lists without end.
UNREADABLE = (ValueError, RecursionError)
BLOCK = 1 << 20  # Characters that are decoded at a time.
GZIP = b"\x1f\x8b"
STANDARD_INPUT = Path("-")


def is_standard_input(path: Path) -> bool:
    """Whether a path stands for standard input."""
    return path == STANDARD_INPUT


def records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields the objects of a file with their places, `file:line`, or `file[index]` in a list.

    A file is known by its content: it is gzip if it begins like it, a JSON list if its text begins
    with a bracket, and a single object, with the file as its place, if that is in several lines.
    Anything else has one object on each line; blank lines are skipped.

    Raises:
      UsageError: If the file cannot be read, or holds something else; it says where.
    """
    try:
        with _open(path) as (file, is_list, is_object):
            if is_list:
                yield from _of_list(path, file)
            elif is_object:
                yield str(path), _object(path, file)
            else:
                yield from _of_lines(path, file)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UsageError(f"{path}: expected text in UTF-8, got the byte {byte:#x}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UsageError(f"{path}: expected a whole gzip file, got one that is damaged") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: expected a file, got a folder") from None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise UsageError(f"{path}: expected a file to read, got {reason}") from None


class _Text(NamedTuple):
    file: IO[str]
    is_list: bool
    is_object: bool


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Text]:
    is_ours = not is_standard_input(path)
    with open(path if is_ours else 0, "rb", closefd=is_ours) as raw:
        binary = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(GZIP) else raw
        start = binary.peek(BLOCK).removeprefix(codecs.BOM_UTF8).lstrip()
        # Some editors put a mark of the byte order first, which utf-8-sig skips.
        with io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
            line, end, _ = start.partition(b"\n")
            is_object = bool(end) and line.strip() == b"{"
            yield _Text(file, start.startswith(b"["), is_object)


def _of_lines(path: Path, file: IO[str]) -> Iterator[tuple[str, Record]]:
    name = str(path)
    number = 0
    while lines := file.readlines(BLOCK):
        for line, found in zip(lines, _decoded(lines), strict=True):
            number += 1
            if len(found) == 1 and type(found[0]) is dict:
                yield f"{name}:{number}", found[0]
            elif found:
                shown = shortened(line.strip())
                raise UsageError(
                    f"{name}:{number}: expected a whole JSON object on this line, got {shown}"
                )


def _decoded(lines: list[str]) -> list[list[Any]]:
    """What each line holds: a value, or nothing where it is blank."""
    try:
        # Faster than line by line. Brackets around each keep a record from spanning two lines.
        found = json.loads(f"[[{'],['.join(lines)}]]")
        if len(found) == len(lines):
            return found
    except UNREADABLE:
        pass
    return [_decoded_line(line) for line in lines]


def _decoded_line(line: str) -> list[Any]:
    """A value, None where it is broken, or nothing."""
    try:
        return [json.loads(line)]
    except UNREADABLE:
        return [None] if line.strip() else []


def _object(path: Path, file: IO[str]) -> Record:
    """The object that is in all lines of a file."""
    try:
        return json.loads(file.read())
    except UNREADABLE:
        raise UsageError(
            f"{path}:1: expected a whole JSON object on this line, or one in all lines, got {{"
        ) from None


def _of_list(path: Path, file: IO[str]) -> Iterator[tuple[str, Record]]:
    try:
        found = json.loads(file.read())
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise UsageError(f"{place}: expected a whole JSON list, got {error.msg.lower()}") from None
    except RecursionError:
        raise UsageError(f"{path}: expected a JSON list, got one nested too deeply") from None
    except ValueError:
        raise UsageError(f"{path}: expected numbers, got one of too many digits") from None
    for index, record in enumerate(found):
        place = f"{path}[{index}]"
        if not isinstance(record, dict):
            shown = shortened(json.dumps(record))
            raise UsageError(f"{place}: expected a JSON object, got {shown}")
        yield place, record


def shortened(text: str) -> str:
    """What a message shows of a text."""
    return text if len(text) <= 40 else f"{text[:40]}..."
