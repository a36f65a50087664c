"""Checksums of a checkpoint's files, by which damage on the disk is noticed and named.

Orbax notices a byte that has changed in the index of its files, but not in the arrays, and no
process of a pod knows the checksum of an array that is spread over several. Files are whole or they
are not: each process leaves the sizes and CRC-32 checksums of those that it has written.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax

from maxpo import parallel
from maxpo.runs._files import TEMPORARY, write_atomic

_CHUNK = 1 << 22


def write_digests(folder: Path) -> None:
    """Records all files of a checkpoint; on a pod every process does it for its own."""
    process = jax.process_index()
    digests = {name: _digest(folder / name) for name in _files_of(folder, process)}
    content = json.dumps(digests, indent=0, sort_keys=True).encode()
    write_atomic(folder / f"digests.{process}.json", content)


def find_damage(folder: Path) -> str:
    """The first file of a checkpoint that is not what was written, in words, or "".

    On a pod all processes must call this: each looks at a share, and all learn of what one finds. A
    checkpoint without records has no damage: it is an older one, or a kill came before them.
    """
    return parallel.first_text(next(_damages(folder), ""))


def _damages(folder: Path) -> Iterator[str]:
    expected: dict[str, list[int]] = {}
    for record in sorted(folder.glob("digests.*.json")):
        try:
            expected.update(dict(json.loads(record.read_bytes())))
        except (OSError, ValueError, TypeError):
            yield f"{record} cannot be read"
    names = sorted(expected)
    for index in parallel.my_share(len(names)):
        path = folder / names[index]
        try:
            if _digest(path) != expected[names[index]]:
                yield f"{path} is not what was written"
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"


def _files_of(folder: Path, process: int) -> Iterator[str]:
    """The files that a process has written; those of no process in particular are the first's."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name).relative_to(folder)
            # The records of other processes may be on their way.
            is_record = name.startswith("digests.") or name.endswith(TEMPORARY)
            if _writer(path) == process and not is_record:
                yield path.as_posix()


def _writer(path: Path) -> int:
    """The process in whose folder of orbax's a file lies: `state/ocdbt.process_3/d/...`."""
    for part in path.parts[:-1]:
        stem, _, number = part.rpartition("_")
        if stem == "ocdbt.process":
            return int(number)
    return 0


def _digest(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]
