"""Checkpoints in Hugging Face's format: Llama, Qwen2 and Qwen3, in and out of a `Transformer`.

A checkpoint is a folder with `config.json` and either `model.safetensors` or several such files
with their `model.safetensors.index.json`. The folder is all that is read; nothing is downloaded.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from maxpo import parallel
from maxpo.lm.model._checkpoint_config import CONFIG, from_fields, to_fields, with_extra
from maxpo.lm.model._checkpoint_entries import EMBEDDING, Entry, entries, shapes
from maxpo.lm.model._checkpoint_files import (
    find_tensors,
    import_safetensors,
    listed,
    read_json,
    replace_checkpoint,
    write_json,
)
from maxpo.lm.model._safetensors import FLOATS, Index, StoredTensor, copy, empty
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.sharding import RULES, layout
from maxpo.lm.model.transformer import Transformer

__all__ = ["check_pretrained", "load_config", "load_pretrained", "save_config", "save_pretrained"]

Tensors = Mapping[str, StoredTensor]

_THREADS = min(8, os.cpu_count() or 1)


def load_config(
    folder: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: bool = False,
) -> TransformerConfig:
    """The configuration that a checkpoint's `config.json` stands for.

    Args:
      folder: The checkpoint.
      context_length: Longest prompt and completion together. None: the longest that the checkpoint
        is made for.
      dtype: Dtype of the computation.
      param_dtype: Dtype of the parameters, whatever the checkpoint stores.
      remat: As in `TransformerConfig`.

    Raises:
      ValueError: If there is no such file, the model is of another architecture or has a feature
        that `Transformer` lacks (other rotary positions, sliding windows, quantization, ...),
        or if a field is missing or ill-typed, naming it; or for a context longer than the
        checkpoint's.
    """
    where = Path(folder) / CONFIG
    return from_fields(
        where,
        read_json(where),
        context_length=context_length,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
    )


def load_pretrained(
    folder: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: bool = False,
    fully_sharded: bool = False,
) -> Transformer:
    """The model of a checkpoint. Needs `pip install 'maxpo[lm]'`, of which only safetensors.

    Everything is checked before the first tensor is read. On a mesh each device gets its slices,
    and each process reads those of its own devices: beside them its host holds one device's part of
    the stacked layers of one kind of matrix.

    Args:
      folder: The checkpoint.
      context_length: As in `load_config`.
      dtype: Dtype of the computation.
      param_dtype: Dtype of the parameters; the checkpoint's own are cast.
      remat: As in `TransformerConfig`.
      fully_sharded: As in `maxpo.lm.model.sharding.layout`.

    Returns:
      The model, laid out on the mesh by `RULES`; without one on the default device.

    Raises:
      MissingExtraError: If the package `safetensors` is missing.
      ValueError: As `load_config`, `check_pretrained` and `layout`.
    """
    safetensors = import_safetensors("load_pretrained")
    config = load_config(
        folder, context_length=context_length, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    params = {entry: _param(model, entry.path) for entry in entries(config)}
    shapes_of = {entry.path[-1]: param.get_value() for entry, param in params.items()}
    specs = layout(shapes_of, RULES, fully_sharded=fully_sharded)
    tensors = find_tensors(Path(folder), safetensors)
    _check_tensors(folder, config, tensors)
    for entry, param in params.items():
        spec = None if specs is None else specs[entry.path[-1]]
        read = partial(_read, entry, tensors, param.dtype)
        param.set_value(parallel.from_slices(param.shape, spec, read))
    return model


def check_pretrained(folder: str | os.PathLike[str], config: TransformerConfig) -> None:
    """Checks all of a checkpoint but the numbers in it: before a run begins, in no time.

    Args:
      folder: The checkpoint.
      config: What `load_config` made of it.

    Raises:
      MissingExtraError: If the package `safetensors` is missing.
      ValueError: If a file is missing or damaged, or tensors are missing, too many, of another
        shape or not floating-point numbers, or a tied model has an unembedding of its own, naming
        them.
    """
    tensors = find_tensors(Path(folder), import_safetensors("model.pretrained"))
    _check_tensors(folder, config, tensors)


def save_pretrained(
    model: Transformer,
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model as a checkpoint for transformers, vLLM and others, or `load_pretrained`.

    Needs `pip install 'maxpo[lm]'`, of which only safetensors. It becomes a Qwen3 with
    `qk_norm`, a Qwen2 with `attention_bias`, and else a Llama. Tokenizer and generation settings
    are not the model's: copy those files of the original beside it.

    Tensors are gathered and written one at a time, beside which the host holds one layer of a kind
    of matrix. On a pod all processes call it; the first one writes.

    An older checkpoint in the folder is replaced when the new one is on the disk, which has to have
    room for both. Whenever this is killed, the folder holds the older one, or no `config.json` and
    so nothing that can be loaded, or the new one.

    Args:
      model: What to write.
      folder: Where to; created if need be. Its `config.json`, `model.safetensors`, and the shards
        and index of a checkpoint in several files, are replaced.
      dtype: What to store the parameters as, "float32" or "bfloat16". None: as they are.
      max_shard_bytes: Parameters of more bytes become several files with an index.
      extra: More fields of `config.json`, such as `bos_token_id`, `eos_token_id` and
        `pad_token_id`; and `max_position_embeddings` in the place of the model's `context_length`,
        where the original's context is longer than the one of the training.

    Raises:
      MissingExtraError: If the package `safetensors` is missing.
      ValueError: If no architecture has both `qk_norm` and `attention_bias`, for another dtype, for
        shards of no bytes, or for an extra field that JSON cannot hold or that contradicts the
        model.
      OSError: If a file cannot be written, naming it. An older checkpoint is still there.
    """
    import_safetensors("save_pretrained")
    config = model.config
    stored = config.param_dtype if dtype is None else dtype
    if stored not in ("float32", "bfloat16"):
        raise ValueError(f"expected dtype to be 'float32' or 'bfloat16', got {dtype!r}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: expected at least 1, got {max_shard_bytes}")
    fields = with_extra(to_fields(config, stored), extra or {}, config)
    arrays = _arrays(model, stored)
    if jax.process_index():
        for _ in arrays:  # Process 0 needs their parts.
            pass
        return
    replace_checkpoint(
        Path(folder),
        fields,
        shapes(config),
        arrays,
        dtype=stored,
        max_shard_bytes=max_shard_bytes,
    )


def save_config(
    config: TransformerConfig,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the `config.json` of a checkpoint and nothing else of it, for `load_config`.

    Args:
      config: Shape of the model.
      folder: Where to; created if need be.
      dtype: What the parameters are stored as, as far as the file says.
      extra: As in `save_pretrained`.

    Raises:
      ValueError: As `save_pretrained`.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, with_extra(to_fields(config, dtype), extra or {}, config))


def _param(model: Transformer, path: tuple[str, ...]) -> Any:
    owner: Any = model
    for name in path:
        owner = getattr(owner, name)
    return owner


def _layers(entry: Entry, value: np.ndarray) -> Iterator[np.ndarray]:
    """Views of the layers of a stacked parameter; the whole of one that is not."""
    return iter(value if entry.is_stacked else value[None])


def _read(entry: Entry, tensors: Tensors, dtype: Any, index: Index) -> np.ndarray:
    """A slice of a parameter; of the files nothing else is read."""
    part = empty([at.stop - at.start for at in index], dtype)
    of_layer = index[1:] if entry.is_stacked else index
    first = index[0].start if entry.is_stacked else 0
    indices = entry.indices(of_layer)

    def read_layer(number: int, layer: np.ndarray) -> None:
        for source, view, at in zip(entry.sources, entry.views(layer), indices, strict=True):
            copy(view, tensors[source.name(number)].read(at).reshape(view.shape))

    # Copies let go of the interpreter.
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read_layer, itertools.count(first), _layers(entry, part)))
    return part


def _arrays(model: Transformer, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in the order of `shapes`; one layer of a kind of matrix is on the host at a time.

    On a pod all processes must go through them.
    """
    for entry in entries(model.config):
        param = _param(model, entry.path)[...]
        for number in range(len(param) if entry.is_stacked else 1):
            layer = parallel.fetch(_layer(param, number) if entry.is_stacked else param)
            for source, view in zip(entry.sources, entry.views(np.asarray(layer)), strict=True):
                yield source.name(number), _contiguous(view, dtype).reshape(source.shape)


def _contiguous(view: np.ndarray, dtype: str) -> np.ndarray:
    if view.flags.c_contiguous:
        return view.astype(dtype, copy=False)
    array = np.empty(view.shape, dtype)
    copy(array, view)
    return array


@jax.jit
def _layer(stacked: jax.Array, number: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, number, keepdims=False)


def _check_tensors(
    folder: str | os.PathLike[str],
    config: TransformerConfig,
    tensors: Tensors,
) -> None:
    """Raises ValueError unless the checkpoint holds just the tensors that the model is made of."""
    expected = shapes(config)
    # A tied model's file may hold its one matrix twice.
    again = {"lm_head.weight": (config.vocab_size, config.hidden)} if config.tied_embeddings else {}
    extra = [
        name
        for name in tensors
        # Old files hold the rotary frequencies, which follow from the config.
        if name not in {**expected, **again} and not name.endswith("rotary_emb.inv_freq")
    ]
    misshapen, other = [], []
    for name, shape in {**expected, **again}.items():
        if name not in tensors:
            continue
        found = tensors[name]
        if found.shape != shape:
            misshapen.append(f"{name} {list(found.shape)} instead of {list(shape)}")
        if found.dtype not in FLOATS:
            other.append(f"{name} {found.dtype}")
    problems = {
        "missing": sorted(name for name in expected if name not in tensors),
        "not expected": sorted(extra),
        "of another shape": sorted(misshapen),
        "not floating-point": sorted(other),
    }
    if any(problems.values()):
        raise ValueError(
            f"the tensors in {folder} are not those of its {CONFIG}; {listed(problems)}"
        )
    for name in again.keys() & tensors.keys():
        if not _are_equal(tensors[name], tensors[EMBEDDING]):
            raise ValueError(
                f"{name} in {folder} differs from {EMBEDDING}, which it would be by "
                f"tie_word_embeddings=true: expected equal matrices, or false in {CONFIG}"
            )


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two matrices hold the same numbers; compared in parts, as they may be large."""
    for start in range(0, one.shape[0], 4096):
        rows = (slice(start, start + 4096),)
        first, second = (tensor.read(rows).astype(np.float32) for tensor in (one, other))
        if not np.array_equal(first, second):
            return False
    return True
