"""Checkpoints in Hugging Face's format: Llama, Qwen2 and Qwen3, in and out of a `Transformer`.

A checkpoint is a folder with `config.json` and either `model.safetensors` or several such files
with their `model.safetensors.index.json`. The folder is all that is read; nothing is downloaded.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maxpo.lm.model._checkpoint_config import CONFIG, from_fields, to_fields, with_extra
from maxpo.lm.model._checkpoint_files import (
    import_safetensors,
    listed,
    open_tensors,
    read_json,
    replace_checkpoint,
    write_json,
)
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.transformer import Transformer

__all__ = ["check_pretrained", "load_config", "load_pretrained", "save_config", "save_pretrained"]

_FLOATS = ("F64", "F32", "F16", "BF16")
_EMBEDDING = "model.embed_tokens.weight"


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
) -> Transformer:
    """The model of a checkpoint. Needs `pip install 'maxpo[hf]'`, of which only safetensors.

    Everything is checked before the first tensor is read. Tensors are read one at a time, so the
    host holds no more than the stacked layers of one kind of matrix beside the model.

    Args:
      folder: The checkpoint.
      context_length: As in `load_config`.
      dtype: Dtype of the computation.
      param_dtype: Dtype of the parameters; the checkpoint's own are cast.
      remat: As in `TransformerConfig`.

    Returns:
      The model, on the default device.

    Raises:
      MissingExtraError: If the package `safetensors` is missing.
      ValueError: As `load_config` and `check_pretrained`.
    """
    safetensors = import_safetensors("load_pretrained")
    config = load_config(
        folder, context_length=context_length, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    with open_tensors(Path(folder), safetensors) as tensors:
        _check_tensors(folder, config, tensors)
        for entry in _entries(config):
            param = _param(model, entry.path)
            stacked = np.empty(param.shape, jnp.dtype(param_dtype))
            for number, layer in enumerate(_layers(entry, stacked)):
                names = [source.name(number) for source in entry.sources]
                layer[...] = entry.pack(*(tensors[name].get_tensor(name) for name in names))
            param.set_value(jnp.asarray(stacked))
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
    with open_tensors(Path(folder), import_safetensors("model.pretrained")) as tensors:
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

    Needs `pip install 'maxpo[hf]'`, of which only safetensors. It becomes a Qwen3 with
    `qk_norm`, a Qwen2 with `attention_bias`, and else a Llama. Tokenizer and generation settings
    are not the model's: copy those files of the original beside it.

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
    safetensors = import_safetensors("save_pretrained")
    config = model.config
    stored = config.param_dtype if dtype is None else dtype
    if stored not in ("float32", "bfloat16"):
        raise ValueError(f"expected dtype to be 'float32' or 'bfloat16', got {dtype!r}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: expected at least 1, got {max_shard_bytes}")
    fields = with_extra(to_fields(config, stored), extra or {}, config)
    bytes_each = jnp.dtype(stored).itemsize
    replace_checkpoint(
        Path(folder),
        fields,
        {name: bytes_each * math.prod(shape) for name, shape in _shapes(config).items()},
        _arrays(model, stored),
        max_shard_bytes=max_shard_bytes,
        safetensors=safetensors,
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


class _Source(NamedTuple):
    """A tensor of the checkpoint; `{}` in the pattern is the number of the layer."""

    pattern: str
    shape: tuple[int, ...]

    def name(self, layer: int) -> str:
        return self.pattern.format(layer)


class _Entry(NamedTuple):
    """A parameter of ours, or a layer of a stacked one, and the tensors that it is made of."""

    path: tuple[str, ...]
    sources: tuple[_Source, ...]
    pack: Callable[..., np.ndarray]
    unpack: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def _entries(config: TransformerConfig) -> list[_Entry]:
    """Which tensors make up which parameter. Torch keeps matrices as `[outputs, inputs]`."""
    c, width = config, config.head_width

    def same(path: tuple[str, ...], pattern: str, *shape: int) -> _Entry:
        return _Entry(path, (_Source(pattern, shape),), lambda x: x, lambda x: (x,))

    def layer(name: str, pattern: str, *shape: int) -> _Entry:
        """A vector, or a matrix to be transposed."""
        source = _Source(f"model.layers.{{}}.{pattern}", shape)
        return _Entry(("layers", name), (source,), lambda x: x.T, lambda x: (x.T,))

    def heads(name: str, kind: str, *inputs: int) -> _Entry:
        """Queries of all heads, keys and values, side by side for each head of keys."""
        counts = (c.heads, c.kv_heads, c.kv_heads)
        sources = tuple(
            _Source(f"model.layers.{{}}.self_attn.{part}_proj.{kind}", (count * width, *inputs))
            for part, count in zip("qkv", counts, strict=True)
        )

        def pack(*parts: np.ndarray) -> np.ndarray:
            return np.concatenate(
                [x.T.reshape(*inputs, c.kv_heads, -1, width) for x in parts], axis=-2
            )

        def unpack(value: np.ndarray) -> tuple[np.ndarray, ...]:
            group = c.heads // c.kv_heads
            parts = np.split(value, [group, group + 1], axis=-2)
            return tuple(x.reshape(*inputs, -1).T for x in parts)

        return _Entry(("layers", name), sources, pack, unpack)

    entries = [
        same(("embedding",), _EMBEDDING, c.vocab_size, c.hidden),
        same(("final_norm",), "model.norm.weight", c.hidden),
        layer("attention_norm", "input_layernorm.weight", c.hidden),
        heads("qkv", "weight", c.hidden),
        layer("attention_out", "self_attn.o_proj.weight", c.hidden, c.heads * width),
        layer("mlp_norm", "post_attention_layernorm.weight", c.hidden),
        layer("gate", "mlp.gate_proj.weight", c.mlp, c.hidden),
        layer("up", "mlp.up_proj.weight", c.mlp, c.hidden),
        layer("down", "mlp.down_proj.weight", c.hidden, c.mlp),
    ]
    if not c.tied_embeddings:
        entries.append(same(("output",), "lm_head.weight", c.vocab_size, c.hidden))
    if c.attention_bias:
        entries.append(heads("qkv_bias", "bias"))
    if c.qk_norm:
        entries.append(layer("query_norm", "self_attn.q_norm.weight", width))
        entries.append(layer("key_norm", "self_attn.k_norm.weight", width))
    return entries


def _param(model: Transformer, path: tuple[str, ...]) -> Any:
    owner: Any = model
    for name in path:
        owner = getattr(owner, name)
    return owner


def _layers(entry: _Entry, value: np.ndarray) -> Iterator[np.ndarray]:
    """Views of the layers of a stacked parameter; the whole of one that is not."""
    return iter(value if entry.path[0] == "layers" else value[None])


def _shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {
        source.name(number): source.shape
        for entry in _entries(config)
        for number in range(config.layers if entry.path[0] == "layers" else 1)
        for source in entry.sources
    }


def _arrays(model: Transformer, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in the order of `_shapes`; one kind of matrix is on the host at a time."""
    for entry in _entries(model.config):
        value = np.asarray(jax.device_get(_param(model, entry.path)[...]))
        for number, layer in enumerate(_layers(entry, value)):
            for source, array in zip(entry.sources, entry.unpack(layer), strict=True):
                yield source.name(number), np.ascontiguousarray(array, jnp.dtype(dtype))


def _check_tensors(
    folder: str | os.PathLike[str],
    config: TransformerConfig,
    tensors: Mapping[str, Any],
) -> None:
    """Raises ValueError unless the checkpoint holds just the tensors that the model is made of."""
    expected = _shapes(config)
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
        view = tensors[name].get_slice(name)
        if tuple(view.get_shape()) != shape:
            misshapen.append(f"{name} {view.get_shape()} instead of {list(shape)}")
        if view.get_dtype() not in _FLOATS:
            other.append(f"{name} {view.get_dtype()}")
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
        if not _are_equal(tensors, name, _EMBEDDING, config.vocab_size):
            raise ValueError(
                f"{name} in {folder} differs from {_EMBEDDING}, which it would be by "
                f"tie_word_embeddings=true: expected equal matrices, or false in {CONFIG}"
            )


def _are_equal(tensors: Mapping[str, Any], one: str, other: str, rows: int) -> bool:
    """Whether two matrices hold the same numbers; read in parts, as they may be large."""
    views = [tensors[name].get_slice(name) for name in (one, other)]
    for start in range(0, rows, 4096):
        end = min(start + 4096, rows)
        first, second = (np.asarray(view[start:end], np.float32) for view in views)
        if not np.array_equal(first, second):
            return False
    return True
