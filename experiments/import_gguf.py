"""Turns a GGUF file into a Hugging Face folder, which training starts from.

    python -m experiments.import_gguf FILE DIR [--dtype=float32|bfloat16]

FILE holds a Llama, Qwen2 or Qwen3, quantized or not. DIR is new, empty or an earlier import.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from maxpo import runs
from maxpo._extras import MissingExtraError
from maxpo.lm.model.gguf import import_gguf

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the way of the other programs."""

    def error(self, message: str) -> NoReturn:
        raise runs.UsageError(message)


def main(argv: Sequence[str] | None = None) -> None:
    """Imports a file and exits with 0 done, 1 failed, 2 bad usage.

    Args:
      argv: The command line without the program's name; that of the process if None.
    """
    parser = _Parser(
        prog="python -m experiments.import_gguf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    try:
        arguments = parser.parse_args(argv)
        imported = import_gguf(arguments.file, arguments.folder, dtype=arguments.dtype)
    except (ValueError, MissingExtraError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(
        f"{arguments.folder}: {imported.architecture} with {imported.parameters:,} parameters in "
        f"{arguments.dtype}"
    )
    for name, size in imported.files.items():
        print(f"  {name}  {size:,} bytes")
    folder = shlex.quote(arguments.folder)
    print(
        f"next: python -m experiments.lm --config.model.pretrained={folder} "
        f"--config.tokenizer={folder}/tokenizer.json --config.sft.steps=0"
    )


if __name__ == "__main__":
    main()
