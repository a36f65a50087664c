"""Command lines of programs that are no study: some words, and few options."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from maxpo import runs
from maxpo._extras import MissingExtraError

__all__ = ["Parser", "exits"]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in the way of the studies.

    Args:
      name: Name of the program's module.
      doc: Its docstring.
    """

    def __init__(self, name: str, doc: str | None):
        super().__init__(
            prog=f"python -m experiments.{name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises a UsageError."""
        raise runs.UsageError(message)


@contextlib.contextmanager
def exits() -> Iterator[None]:
    """Ends the program with one sentence on stderr: code 2 on bad usage, 1 on a full disk."""
    try:
        yield
    except (ValueError, MissingExtraError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
