"""Unbiased pass@k and max@k of samples that any program has scored.

    python -m maxpo.evaluate [LABEL=]FILE ... [--out=FOLDER]

FILE has a record for each sample, with its problem and its score, as JSON lines or a JSON list,
plain or gzipped; - is standard input. Files of one LABEL are seeds of one method, and
LABEL='runs/*/scores.jsonl' takes all that match; without a label, a file is a method, and has its
path for a name. Differences are those to the first method, on the problems that both have.
"""

import argparse
import glob
import os
import signal
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

    Where nobody reads what is printed any more, as behind `head`, the files are still written, and
    the exit code is 141, that of a program that ends by SIGPIPE.

    Args:
      argv: The command line without the program's name; that of the process if None.
    """
    arguments = _parser().parse_args(argv)
    out = None if arguments.out is None else Path(arguments.out)
    try:
        if out is not None and out.exists() and not out.is_dir():
            raise UsageError(f"--out: expected a folder, got the file {out}")
        evaluation = evaluate(
            _methods(arguments.files, pool=arguments.pool),
            k=arguments.k,
            problem=arguments.problem,
            score=arguments.score,
            where=_where(arguments.where),
            success=arguments.success,
            pool=arguments.pool,
        )
        is_read = _print(to_text(evaluation))
        if out is not None:
            write(evaluation, out)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        # Dies by the signal, which is how a shell knows that a loop of commands should end, too.
        print("\ninterrupted", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None
    if not is_read:
        raise SystemExit(128 + signal.SIGPIPE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m maxpo.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="[LABEL=]FILE", help="scores, of a method if it is named")
    add("--k", type=_whole_numbers, metavar="K,...", help="instead of 1, 2, 4, .. and n")
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


def _print(text: str) -> bool:
    """Prints a text; returns whether somebody has read it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The interpreter would complain as it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _methods(words: Sequence[str], *, pool: bool) -> dict[str, list[str]]:
    """Label to files, in the order of the command line."""
    methods: dict[str, list[str]] = {}
    unlabeled = []
    for word in words:
        label, equals, path = word.partition("=")
        # A path may have an equals sign of its own.
        if not equals or _matches(word):
            found = _files_of("files", word)
            unlabeled += found
            for file in found:
                methods.setdefault(file, []).append(file)
        elif not label or not path:
            raise UsageError(f"files: expected LABEL=FILE, got {word}")
        else:
            methods.setdefault(label, []).extend(_files_of(label, path))
    if pool and len(unlabeled) > 1:
        raise UsageError(
            "--pool: expected files of one label, as in "
            f"x={unlabeled[0]} x={unlabeled[1]}, got {len(unlabeled)} without a label"
        )
    return methods


def _files_of(name: str, path: str) -> list[str]:
    """The files of a path, or of a pattern that a shell has left to us; a name for errors."""
    found = _matches(path)
    if not found and glob.has_magic(path):
        raise UsageError(f"{name}: expected files that match {path}, got none")
    return found or [path]


def _matches(path: str) -> list[str]:
    """The files that a path or a pattern stands for; what exists is no pattern."""
    if Path(path).exists():
        return [path]
    # Path.glob takes no pattern that begins with a slash.
    return sorted(glob.glob(path, recursive=True))  # noqa: PTH207


def _where(assignments: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Field to value of all that are chosen by."""
    fields = [field for field, _ in assignments]
    for field in fields:
        if fields.count(field) > 1:
            raise UsageError(f"--where: expected one value of {field}, got several")
    return dict(assignments)


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
