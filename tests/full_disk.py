"""A disk that is full, for all files or for one of a run's."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

import pytest

from maxpo.runs import _run


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Lets no file of this process grow over `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str, lines: int) -> None:
    """Lets so many lines of a file be written, and none after them."""
    append, left = _run.MetricsFile.append, [lines]

    def full(file, record):
        if file.path.name == name:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.path))
        append(file, record)

    monkeypatch.setattr(_run.MetricsFile, "append", full)
