"""Reads Parquet files, such as the package `datasets` saves: one, or those of a folder."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from maxpo._extras import missing_extra

__all__ = ["is_parquet", "read_parquet"]

_MAGIC = b"PAR1"
# How the files of splits begin. Those of two in one folder would be taken for one.
_SPLITS = re.compile("train|test|val|dev|eval")


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_parquet(path: Path, fields: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, or of the files of a folder in the order of their names.

    Columns are checked at once, rows are read as they are asked for. What a row nests is dicts and
    lists.

    Args:
      path: A file, or a folder of files *.parquet.
      fields: Columns that there must be, or "COLUMN.FIELD" of what is nested in one.

    Returns:
      Yields each row after its place, as "file, row 0": they count from 0, as in `datasets`.

    Raises:
      MissingExtraError: If pyarrow is missing.
      ValueError: If a folder holds no such file or those of several splits, if a file lacks a
        column or has one twice, or, maybe later, if it is damaged.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra(str(path), "pyarrow", "parquet", error) from error
    files = _files(path) if path.is_dir() else [path]
    for file in files:
        with _naming(file):
            names = pyarrow.parquet.read_schema(file).names
        for field in fields:
            if field not in names and field.partition(".")[0] not in names:
                raise ValueError(f"{file}: no column {field!r}; its columns are {names}")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{file}: expected columns of different names, got {name!r} twice")
    return (row for file in files for row in _rows(file))


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"the folder {folder}: expected files *.parquet, got none")
    splits = {found[0] for file in files if (found := _SPLITS.match(file.name))}
    if len(splits) > 1:
        raise ValueError(
            f"the folder {folder}: expected the files of one split, got those of"
            f" {' and '.join(sorted(splits))}; give each split a folder of its own"
        )
    return files


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    number = 0
    with _naming(path), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                yield f"{path}, row {number}", row
                number += 1


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes one sentence with the file of what pyarrow says about it."""
    try:
        yield
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a Parquet file that can be read, got: {why}") from error
