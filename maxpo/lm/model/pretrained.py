"""Checkpoints in Hugging Face's format: Llama, Qwen2 and Qwen3, in and out of a `Transformer`.

A checkpoint is a folder with `config.json` and either `model.safetensors` or several such files
with their `model.safetensors.index.json`. The folder is all that is read; nothing is downloaded.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maxpo._extras import missing_extra
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.transformer import Transformer

__all__ = ["check_pretrained", "load_config", "load_pretrained", "save_pretrained"]

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_CONFIG, _SINGLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_EMBEDDING = "model.embed_tokens.weight"
_NAMED = 4  # How many tensors a message names.


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
        that `Transformer` lacks (scaled rotary positions, sliding windows, quantisation, ...),
        or if a field is missing or ill-typed, naming it; or for a context longer than the
        checkpoint's.
    """
    where = Path(folder) / _CONFIG
    fields = _read_json(where)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CLASSES:
        raise ValueError(
            f"expected one of the architectures {', '.join(_CLASSES)} in {where}, got "
            f"model_type {model_type!r}"
        )
    rope = _rope(where, fields)
    qwen2 = model_type == "qwen2"
    layer_types = fields.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise _unexpected(where, "layer_types", "a list or null", layer_types)
    for name, value, supported in (
        ("hidden_act", fields.get("hidden_act", "silu"), "silu"),
        ("rotary positions", rope.get("rope_type", rope.get("type", "default")), "default"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
        # Qwen2 has biases without a word; those of Llama and Qwen3 would include the output's.
        ("attention_bias", not qwen2 and fields.get("attention_bias", False), False),
        ("mlp_bias", fields.get("mlp_bias", False), False),
        ("use_sliding_window", fields.get("use_sliding_window", False), False),
        ("layer_types", {str(x) for x in layer_types or ()} - {"full_attention"}, set()),
        ("quantization_config", fields.get("quantization_config"), None),
    ):
        if value != supported:
            raise ValueError(f"{where}: expected {name} to be {supported!r}, got {value!r}")

    def size(name: str, silent: int | None = None) -> int:
        """A positive integer; `silent` is what transformers takes where the file is silent."""
        value = fields.get(name, silent)
        if value is None:
            raise ValueError(f"{where} has no field {name!r}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _unexpected(where, name, "an integer above 0", value)
        return value

    def number(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _unexpected(where, name, "a number above 0", value)
        if not 0 < value < math.inf:
            raise _unexpected(where, name, "a number above 0", value)
        return float(value)

    tied = fields.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise _unexpected(where, "tie_word_embeddings", "true or false", tied)
    longest = size("max_position_embeddings")
    if context_length is None:
        context_length = longest
    elif context_length > longest:
        raise ValueError(
            f"expected a context_length of at most {longest}, which is what the model in {folder} "
            f"is made for, got {context_length}"
        )
    heads, hidden = size("num_attention_heads"), size("hidden_size")

    def is_null(name: str) -> bool:
        return name in fields and fields[name] is None

    # Null stands for what follows from other fields. A silent Qwen3 has heads of 128.
    kv_heads = heads if is_null("num_key_value_heads") else size("num_key_value_heads", heads)
    head_dim = None
    if not is_null("head_dim") and ("head_dim" in fields or model_type == "qwen3"):
        head_dim = size("head_dim", 128)
    theta = rope["rope_theta"] if "rope_theta" in rope else fields.get("rope_theta", 1e4)
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        context_length=context_length,
        hidden=hidden,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        mlp=size("intermediate_size"),
        head_dim=head_dim,
        tied_embeddings=tied,
        qk_norm=model_type == "qwen3",
        attention_bias=qwen2,
        rope_theta=number("rope_theta", theta),
        norm_epsilon=number("rms_norm_eps", fields.get("rms_norm_eps", 1e-6)),
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
    safetensors = _import_safetensors("load_pretrained")
    config = load_config(
        folder, context_length=context_length, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    entries = _entries(config)
    with _open(Path(folder), safetensors) as tensors:
        _check_tensors(folder, config, entries, tensors)
        for entry in entries:
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
    with _open(Path(folder), _import_safetensors("model.pretrained")) as tensors:
        _check_tensors(folder, config, _entries(config), tensors)


def save_pretrained(
    model: Transformer, folder: str | os.PathLike[str], *, dtype: str | None = None
) -> None:
    """Writes a model as a checkpoint for transformers, vLLM and others, or `load_pretrained`.

    Needs `pip install 'maxpo[hf]'`, of which only safetensors. It becomes a Qwen3 with
    `qk_norm`, a Qwen2 with `attention_bias`, and else a Llama. Tokenizer and generation settings
    are not the model's: copy those files of the original beside it. The checkpoint's longest
    context is the model's `context_length`.

    Args:
      model: What to write.
      folder: Where to; created if need be. Its `config.json` and `model.safetensors` are replaced.
      dtype: What to store the parameters as, "float32" or "bfloat16". None: as they are.

    Raises:
      MissingExtraError: If the package `safetensors` is missing.
      ValueError: If no architecture has both `qk_norm` and `attention_bias`, or for another dtype.
    """
    safetensors = _import_safetensors("save_pretrained")
    config = model.config
    stored = config.param_dtype if dtype is None else dtype
    if stored not in ("float32", "bfloat16"):
        raise ValueError(f"expected dtype to be 'float32' or 'bfloat16', got {dtype!r}")
    if config.qk_norm and config.attention_bias:
        raise ValueError(
            "expected at most one of qk_norm (Qwen3) and attention_bias (Qwen2), got a model with "
            "both, which no supported architecture has"
        )
    model_type = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
    arrays = {}
    for entry in _entries(config):
        value = np.asarray(jax.device_get(_param(model, entry.path)[...]))
        for number, layer in enumerate(_layers(entry, value)):
            for source, array in zip(entry.sources, entry.unpack(layer), strict=True):
                arrays[source.name(number)] = np.ascontiguousarray(array, jnp.dtype(stored))
    fields = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": stored,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # "format" is what transformers asks for.
    safetensors.numpy.save_file(arrays, folder / _SINGLE, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


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


def _check_tensors(
    folder: str | os.PathLike[str],
    config: TransformerConfig,
    entries: list[_Entry],
    tensors: Mapping[str, Any],
) -> None:
    """Raises ValueError unless the checkpoint holds just the tensors that the model is made of."""
    expected = {
        source.name(number): source.shape
        for entry in entries
        for source in entry.sources
        for number in range(config.layers if entry.path[0] == "layers" else 1)
    }
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
    problems = [
        f"{what}: {', '.join(sorted(names)[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for what, names in (
            ("missing", [name for name in expected if name not in tensors]),
            ("not expected", extra),
            ("of another shape", misshapen),
            ("not floating-point", other),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"the tensors in {folder} are not those of its {_CONFIG}; {'; '.join(problems)}"
        )
    for name in again.keys() & tensors.keys():
        if not _are_equal(tensors, name, _EMBEDDING, config.vocab_size):
            raise ValueError(
                f"{name} in {folder} differs from {_EMBEDDING}, which it would be by "
                f"tie_word_embeddings=true: expected equal matrices, or false in {_CONFIG}"
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


@contextlib.contextmanager
def _open(folder: Path, safetensors: ModuleType) -> Iterator[dict[str, Any]]:
    """The open file of each tensor."""
    if (folder / _SINGLE).is_file():
        names = [_SINGLE]
    elif (folder / _INDEX).is_file():
        index = _read_json(folder / _INDEX).get("weight_map")
        if index is None:
            raise ValueError(f"{folder / _INDEX} has no weight_map")
        if not isinstance(index, dict) or not all(isinstance(x, str) for x in index.values()):
            raise ValueError(
                f"{folder / _INDEX}: weight_map: expected an object of file names by tensor, got "
                f"{json.dumps(index)[:80]}"
            )
        names = sorted(set(index.values()))
        for name in names:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / _INDEX} names {name}, which is not in the folder")
    else:
        raise ValueError(f"expected {_SINGLE} or {_INDEX} in {folder}, got neither")
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for name in names:
            try:
                file = safetensors.safe_open(folder / name, framework="numpy")
            except safetensors.SafetensorError as error:
                raise ValueError(f"{folder / name} is no whole safetensors file: {error}") from None
            file = stack.enter_context(file)
            tensors.update(dict.fromkeys(file.keys(), file))
        yield tensors


def _rope(where: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary positions; `rope_parameters` is the newer name of `rope_scaling`."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        found = fields.get(name)
        if found is None:
            continue
        if not isinstance(found, dict):
            raise _unexpected(where, name, "an object or null", found)
        if any(isinstance(value, dict) for value in found.values()):
            raise _unexpected(where, name, "the same for all layers", found)
        rope |= found
    return rope


def _unexpected(where: Path, name: str, expected: str, value: Any) -> ValueError:
    """The error for a field, with its value as JSON."""
    return ValueError(f"{where}: {name}: expected {expected}, got {json.dumps(value)}")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ValueError(f"expected the folder of a checkpoint, got {path.parent}, which is none")
    if not path.is_file():
        raise ValueError(f"expected {path.name} in {path.parent}, which has none")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(fields).__name__}")
    return fields


def _import_safetensors(caller: str) -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise missing_extra(caller, "safetensors", "hf", error) from error
    return safetensors
