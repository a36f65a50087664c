"""A disk that is full for one of a run's files."""

import errno
import os

import pytest

from maxpo.runs import _run


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
