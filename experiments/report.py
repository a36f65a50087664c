"""Writes one HTML page about a language-model run: why its rewards are what they are.

    python -m experiments.report RUN [--out=FILE]

RUN is the folder of a run or of a study with runs in its folders. It may still be training: the
page tells what is there, and is made again by the same command.
"""

import argparse
import sys
from collections.abc import Sequence

from maxpo.lm.training.report import write_report
from maxpo.runs import UsageError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page and prints its path; exits with 2 and one sentence where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run or of a study")
    parser.add_argument("--out", metavar="FILE", help="the page; RUN/report.html without it")
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.run, arguments.out))
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
