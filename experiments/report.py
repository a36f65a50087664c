"""Writes one HTML page about a language-model run: why its rewards are what they are.

    python -m experiments.report RUN [--out=FILE]

RUN is the folder of a run or of a study with runs in its folders. It may still be training: the
page tells what is there, and is made again by the same command.
"""

from collections.abc import Sequence

from experiments._arguments import Parser, exits
from maxpo.lm.training.report import write_report

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page, prints its path, and exits with 0 done, 1 failed, 2 bad usage.

    Args:
      argv: The command line without the program's name; that of the process if None.
    """
    parser = Parser("report", __doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a run or of a study")
    parser.add_argument("--out", metavar="FILE", help="the page; RUN/report.html without it")
    with exits():
        arguments = parser.parse_args(argv)
        print(write_report(arguments.run, arguments.out))


if __name__ == "__main__":
    main()
