"""Unbiased pass@k and max@k of samples that any program has scored.

    python -m maxpo.evaluate [LABEL=]FILE ... [--out=FOLDER]

FILE has a record for each sample, with its problem and its score, as JSON lines or a JSON list,
plain or gzipped. Files of one LABEL are seeds of one method, and LABEL='run*.jsonl' takes all that
match; without a label, a file is a method, and has its path for a name. Differences are those to
the first method, on the problems that both have.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maxpo.evaluate._evaluation import evaluate
from maxpo.evaluate._report import to_text
from maxpo.evaluate._writing import write
from maxpo.runs import UsageError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints an evaluation, and exits with 0 done, 1 failed, 2 bad usage.

    Args:
      argv: The command line without the program's name; that of the process if None.
    """
    arguments = _parser().parse_args(argv)
    out = None if arguments.out is None else Path(arguments.out)
    try:
        if out is not None and out.exists() and not out.is_dir():
            raise UsageError(f"--out: expected a folder, got the file {out}")
        evaluation = evaluate(
            _methods(arguments.files),
            k=arguments.k,
            problem=arguments.problem,
            score=arguments.score,
            where=dict(arguments.where),
            success=arguments.success,
            pool=arguments.pool,
        )
        print(to_text(evaluation), flush=True)
        if out is not None:
            write(evaluation, out)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m maxpo.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="[LABEL=]FILE", help="scores, of a method if it is named")
    add("--k", type=_whole_numbers, metavar="K,...", help="instead of 1, 2, 4, ..")
    add("--problem", metavar="FIELD,...", help="the field, or fields, that tell problems apart")
    add("--score", metavar="FIELD", help="the field with the score")
    add(
        "--where",
        type=_assignment,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="read only these records; 'last' is the largest number, '*' any value",
    )
    add("--success", type=float, default=1.0, help="the least score that is correct; 1 without it")
    add("--pool", action="store_true", help="files of a label are samples of one model, not seeds")
    add("--out", metavar="FOLDER", help="write evaluation.json and evaluation.png there")
    return parser


def _methods(words: Sequence[str]) -> dict[str, list[str]]:
    """Label to files, in the order of the command line."""
    methods: dict[str, list[str]] = {}
    for word in words:
        label, equals, path = word.partition("=")
        # A path may have an equals sign of its own.
        if not equals or Path(word).exists():
            label = path = word
        # Shells leave the pattern of LABEL=PATTERN to us.
        file = Path(path)
        matches = [] if file.exists() else sorted(map(str, file.parent.glob(file.name)))
        methods.setdefault(label, []).extend(matches or [path])
    return methods


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text}") from None


def _assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE, got {text}")
    return field, value


if __name__ == "__main__":
    main()
