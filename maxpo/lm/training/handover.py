"""A trained model as a folder that other programs load: weights, tokenizer, chat template."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo import runs
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.lora import LoRA, adapt, merged
from maxpo.lm.model.policy import trainable
from maxpo.lm.model.pretrained import load_config, load_pretrained, save_config, save_pretrained
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks.tokenizers import Tokenizer, end_ids, load_tokenizer, read_json_object
from maxpo.lm.training._lora_file import read_lora, write_lora
from maxpo.lm.training.folders import HF, SHAPE
from maxpo.training import TrainState

__all__ = ["checkpoint_folder", "context_of", "export", "hand_over", "save_shape"]


def checkpoint_folder(path: str | os.PathLike[str], name: str = "model.pretrained") -> Path:
    """The checkpoint that a path names: a folder of Hugging Face's, or a run's trained model.

    Args:
      path: The folder.
      name: What gives it, for the message.

    Raises:
      ValueError: If it is no folder, or that of a run that has no model, or of a study of several.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"{name}: expected the folder of a checkpoint, got {folder}, which is no folder"
        )
    if (folder / HF / "config.json").is_file():
        return folder / HF
    if (folder / "metrics.jsonl").exists() or (folder / "summary.json").exists():
        inner = sorted(found.parent.parent.name for found in folder.glob(f"*/{HF}/config.json"))
        names = f"one of its runs ({', '.join(inner)})" if inner else "a run with a folder hf/"
        raise ValueError(
            f"{name}: expected a checkpoint or {names}, got the run {folder}; "
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

    On a pod all processes call it; the first one writes. See `save_pretrained`.

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
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    folder = Path(folder)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _save_tokenizer(tokenizer, folder)
    # Last, with config.json as its end: what a kill leaves is no checkpoint.
    save_pretrained(
        nnx.merge(graph, params),
        folder,
        dtype=dtype,
        extra={**_token_fields(tokenizer), **(extra or {})},
    )


def save_shape(
    config: TransformerConfig,
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    lora: LoRA | None = None,
    base: Path | None = None,
) -> None:
    """Writes what `export` needs of a run beside its checkpoints: all of a model but its weights.

    Models that no architecture of Hugging Face can hold are left out.

    Args:
      config: Shape of the model.
      tokenizer: Between text and its tokens.
      folder: The run's.
      extra: As of `hand_over`.
      lora: The adapters that are trained. None: all parameters are.
      base: The checkpoint that they are trained on, if it is one.
    """
    if jax.process_index() or (config.qk_norm and config.attention_bias):
        return
    shape = Path(folder) / SHAPE
    save_config(config, shape, extra={**_token_fields(tokenizer), **(extra or {})})
    _save_tokenizer(tokenizer, shape)
    if lora is not None:
        write_lora(shape, lora, base, config.param_dtype)


def export(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    step: int | None = None,
    best: bool = False,
    dtype: str = "float32",
    base: str | os.PathLike[str] | None = None,
) -> int:
    """Writes the model of a run's checkpoint for other programs. The run may be going on.

    Args:
      run: The folder of one run; of a study that of one of its runs.
      folder: Where to; created if need be.
      step: The checkpoint's. None: the last one.
      best: The best parameters of the evaluations while training, in the place of a checkpoint's.
      dtype: What the parameters are stored as, "float32" or "bfloat16".
      base: The checkpoint that a run of adapters froze, where it is not the folder that it was.

    Returns:
      The step.

    Raises:
      UsageError: If the folder is no run with a model, or has no such checkpoint, or its adapters
        were trained on another model than the base.
      OSError: If a file cannot be written, naming it.
    """
    run, shape = Path(run), Path(run) / SHAPE
    if not (shape / "config.json").is_file():
        inner = sorted(found.parent.parent.name for found in run.glob(f"*/{SHAPE}/config.json"))
        names = f"one of its runs ({', '.join(inner)})" if inner else "the run of a language model"
        raise runs.UsageError(f"RUN: expected {names}, got {run}")
    if best and step is not None:
        raise runs.UsageError(f"step: expected none with best, got {step}")
    config = load_config(shape)
    graph, params, frozen = _structure(shape, config, base)
    if best:
        params, found = runs.read_checkpoint(run, params, best=True)
    else:
        # Without the optimizer's part, which is twice as large.
        like = TrainState(jnp.int32(0), params, ())
        state, found = runs.read_checkpoint(run, like, step=step)
        params = state.params
    extra = context_of(shape)
    params = merged(nnx.merge(graph, params, frozen))
    hand_over(config, params, load_tokenizer(shape), folder, dtype=dtype, extra=extra)
    return found


def _structure(
    shape: Path, config: TransformerConfig, base: str | os.PathLike[str] | None
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """As `trainable` of a run's model, with shapes in the place of what is trained."""
    adapted = read_lora(shape)
    if adapted is None:
        if base is not None:
            raise runs.UsageError(f"base: expected none for a run without adapters, got {base}")
        return trainable(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    folder = adapted.find(None if base is None else checkpoint_folder(base, "base"))
    model = load_pretrained(folder, param_dtype=adapted.param_dtype)
    return trainable(adapt(model, adapted.lora, jax.random.key(0)))


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
        runs.write_atomic(folder / name, content.encode())


def context_of(folder: Path | None) -> dict[str, Any]:
    """The longest context that a checkpoint is made for, as a field of `config.json`.

    A model that is trained on short texts is not confined to their length. None: nothing is known.
    """
    if folder is None:
        return {}
    longest = read_json_object(folder / "config.json").get("max_position_embeddings")
    return {} if longest is None else {"max_position_embeddings": longest}
