"""A trained model as a folder that other programs load: weights, tokenizer, chat template."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from maxpo import parallel
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.pretrained import save_pretrained
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks.tokenizers import Tokenizer, end_ids, read_json_object

__all__ = ["HF", "checkpoint_folder", "context_of", "hand_over"]

HF = "hf"
"""Where a run holds its trained model."""


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a path names: a folder of Hugging Face's, or a run's trained model.

    Raises:
      ValueError: If it is the folder of a run that has none, or that of a study of several.
    """
    folder = Path(path)
    if (folder / HF / "config.json").is_file():
        return folder / HF
    if (folder / "metrics.jsonl").exists() or (folder / "summary.json").exists():
        inner = sorted(found.parent.parent.name for found in folder.glob(f"*/{HF}/config.json"))
        names = f"one of its runs ({', '.join(inner)})" if inner else "a run with a folder hf/"
        raise ValueError(
            f"model.pretrained: expected a checkpoint or {names}, got the run {folder}; "
            "python -m experiments.export RUN DIR makes a checkpoint of a run's"
        )
    return folder


def hand_over(
    config: TransformerConfig,
    params: nnx.State,
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    *,
    dtype: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a trained model, its tokenizer and all that belongs to them.

    On a pod all processes call it; the first one writes.

    Args:
      config: Shape of the model.
      params: Parameters of the `Transformer`.
      tokenizer: Between text and its tokens.
      folder: Where to; created if need be.
      dtype: What the parameters are stored as, "float32" or "bfloat16".
      extra: Fields of `config.json`, such as the longest context of the model it was made from.

    Raises:
      OSError: If a file cannot be written, naming it.
    """
    params = parallel.fetch(params)
    if jax.process_index():
        return
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(tokenizer, folder)
    # Last, with config.json as its end: what a kill leaves is no checkpoint.
    save_pretrained(
        nnx.merge(graph, params),
        folder,
        dtype=dtype,
        extra={**_token_fields(tokenizer), **(extra or {})},
    )


def _token_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The special tokens, as `config.json` and `generation_config.json` name them."""
    ends, start = end_ids(tokenizer), getattr(tokenizer, "start_ids", ())
    return {
        "bos_token_id": start[0] if start else None,
        "eos_token_id": list(ends) if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a tokenizer's files, and how to generate with it."""
    files = {"tokenizer.json": tokenizer.to_json(), **getattr(tokenizer, "files", {})}
    files.setdefault("generation_config.json", json.dumps(_token_fields(tokenizer), indent=2))
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def context_of(folder: Path) -> dict[str, Any]:
    """The longest context that a checkpoint is made for, as a field of `config.json`."""
    longest = read_json_object(folder / "config.json").get("max_position_embeddings")
    return {} if longest is None else {"max_position_embeddings": longest}
