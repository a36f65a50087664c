"""A few characters that tell one checkpoint, tokenizer or policy from another."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from maxpo import parallel
from maxpo.lm.tasks.tokenizers import Tokenizer

__all__ = ["checkpoint_digest", "policy_digest", "shown", "tokenizer_digest"]


def checkpoint_digest(folder: Path) -> str:
    """A hash of a checkpoint's `config.json`, and of the sizes and some parts of its weights."""
    content = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        content.update(f"{file.name} {file.stat().st_size}\n".encode())
        for part in _samples(file):
            content.update(part)
    return shown(content)


def policy_digest(params: nnx.State) -> str:
    """A hash of the names, types and values of a policy's parameters."""
    content = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(parallel.fetch(leaf))
        content.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).view(np.uint8).data)
    return shown(content)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A hash of all that a tokenizer is made of."""
    return shown(hashlib.sha256(tokenizer.to_json().encode()))


def _samples(file: Path) -> Iterator[bytes]:
    """Some of a file, all over it: reading weights whole would take as long as loading them."""
    parts, length = 64, 65536
    with file.open("rb") as stream:
        for part in range(parts):
            stream.seek(file.stat().st_size * part // parts)
            yield stream.read(length)


def shown(content: Any) -> str:
    """The first characters of a hash, as they are written into a config."""
    return f"sha256:{content.hexdigest()[:16]}"
