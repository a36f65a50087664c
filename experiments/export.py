"""Writes the model of a run as a Hugging Face folder, for transformers, vLLM and others.

    python -m experiments.export RUN DIR [--dtype=float32|bfloat16] [--step=N | --best] [--base=DIR]

RUN is the folder of one run; of a study, that of one of its runs. It may be going on.
"""

from collections.abc import Sequence

from experiments._arguments import Parser, exits
from maxpo.lm.training.handover import export

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Exports a model and exits with 0 done, 1 failed, 2 bad usage.

    Args:
      argv: The command line without the program's name; that of the process if None.
    """
    parser = Parser("export", __doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--base", metavar="DIR", help="what a run of adapters froze, if moved")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the last checkpoint without it")
    which.add_argument("--best", action="store_true", help="what was best of the evaluations")
    with exits():
        found = parser.parse_args(argv)
        step = export(
            found.run,
            found.folder,
            step=found.step,
            best=found.best,
            dtype=found.dtype,
            base=found.base,
        )
    print(f"{found.folder}: the model of {found.run} after step {step}, in {found.dtype}")


if __name__ == "__main__":
    main()
