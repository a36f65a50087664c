"""A model's shape and weights: from a GGUF file to Hugging Face's format."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from maxpo import runs
from maxpo.lm.model._gguf_file import GGUFFile
from maxpo.lm.model.config import TransformerConfig

__all__ = ["Weight", "config_fields", "list_weights", "read_config", "write_weights"]

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_EMBEDDING, _OUTPUT, _ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_CODES = {"float32": "F32", "bfloat16": "BF16"}  # As safetensors names them.
_ROWS = 4096  # How many become numbers at a time: a large embedding need not fit twice.
_NAMED = 4  # How many tensors a message names.


class Weight(NamedTuple):
    """A tensor, by its names in both formats; row i is row `order[i]` of the GGUF file's."""

    source: str
    target: str
    shape: tuple[int, ...]
    order: np.ndarray


def read_config(file: GGUFFile) -> TransformerConfig:
    """The shape of the model that a file holds.

    Raises:
      ValueError: If it is of another architecture, has a feature that `Transformer` lacks, or its
        metadata are missing, ill-typed or do not fit together.
    """
    arch = file.architecture
    if arch not in _CLASSES:
        file.refuse("general.architecture", f"one of {', '.join(_CLASSES)}", arch)
    if _EMBEDDING not in file.tensors:
        raise ValueError(f"{file.path} has no tensor {_EMBEDDING}")
    _refuse_features(file)
    heads = file.required(f"{arch}.attention.head_count", int)
    theta = file.optional(f"{arch}.rope.freq_base", float)
    fields: dict[str, Any] = {
        "vocab_size": int(file.tensors[_EMBEDDING].shape[-1]),
        "context_length": file.required(f"{arch}.context_length", int),
        "hidden": file.required(f"{arch}.embedding_length", int),
        "layers": file.required(f"{arch}.block_count", int),
        "heads": heads,
        "kv_heads": file.optional(f"{arch}.attention.head_count_kv", int) or heads,
        "mlp": file.required(f"{arch}.feed_forward_length", int),
        "head_dim": file.optional(f"{arch}.attention.key_length", int),
        "tied_embeddings": _OUTPUT not in file.tensors,
        "qk_norm": arch == "qwen3",
        "attention_bias": arch == "qwen2",
        "rope_theta": 1e4 if theta is None else _meant(theta),
        "norm_epsilon": _meant(file.required(f"{arch}.attention.layer_norm_rms_epsilon", float)),
    }
    try:
        config = TransformerConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    for name in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
        width = file.optional(name, int)
        if width not in (None, config.head_dim):
            file.refuse(name, f"{config.head_dim}, the width of a head", width)
    return config


def config_fields(file: GGUFFile, config: TransformerConfig, dtype: str) -> dict[str, Any]:
    """What `config.json` says of the model, its tokens left out.

    Raises:
      ValueError: If rotary positions are scaled in another way than those of Llama 3.1.
    """
    scaling = _rope_scaling(file, config)
    return {
        "architectures": [_CLASSES[file.architecture]],
        "model_type": file.architecture,
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
        **({} if scaling is None else {"rope_scaling": scaling}),
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
    }


def list_weights(file: GGUFFile, config: TransformerConfig) -> list[Weight]:
    """The tensors of a model, in the order of its layers.

    Raises:
      ValueError: If the file lacks some, has others, or has them of other shapes or of a type that
        the package `gguf` cannot read, naming them.
    """
    weights = list(_weights(config, permuted=file.architecture == "llama"))
    # How positions are turned, which config.json says.
    extra = file.tensors.keys() - {weight.source for weight in weights} - {_ROPE_FACTORS}
    missing = [weight.source for weight in weights if weight.source not in file.tensors]
    misshapen = [
        weight.source
        for weight in weights
        if weight.source in file.tensors
        and tuple(reversed(file.tensors[weight.source].shape)) != weight.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for what, names in (
            ("missing", missing),
            ("not expected", sorted(extra)),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"the tensors in {file.path} are not those of its metadata; {'; '.join(problems)}"
        )
    one_of_each_type = {file.tensors[weight.source].tensor_type: weight for weight in weights}
    for weight in one_of_each_type.values():
        file.rows(weight.source, weight.order[:1])
    return weights


def write_weights(output: BinaryIO, file: GGUFFile, weights: Sequence[Weight], dtype: str) -> None:
    """Writes the content of a safetensors file, a part of a tensor at a time.

    Args:
      output: Where to.
      file: Where from.
      weights: Which.
      dtype: What to store them as, "float32" or "bfloat16".
    """
    stored = jnp.dtype(dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # What transformers asks for.
    end = 0
    for weight in weights:
        start, end = end, end + math.prod(weight.shape) * stored.itemsize
        header[weight.target] = {
            "dtype": _CODES[dtype],
            "shape": weight.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # Numbers begin where processors like them to.
    output.write(len(text).to_bytes(8, "little") + text)
    for weight in runs.progress(weights, unit="tensors"):
        for start in range(0, weight.shape[0], _ROWS):
            rows = file.rows(weight.source, weight.order[start : start + _ROWS])
            output.write(rows.astype(stored).tobytes())


def _refuse_features(file: GGUFFile) -> None:
    """Raises ValueError for what changes the numbers and `Transformer` does not do."""
    arch = file.architecture
    for name, kind, plain in (
        ("rope.scaling.type", str, "none"),
        ("rope.scale_linear", float, 1.0),
        ("expert_count", int, 0),
        ("attention.sliding_window", int, 0),
        ("attention.causal", bool, True),
    ):
        value = file.optional(f"{arch}.{name}", kind)
        if value not in (None, plain):
            file.refuse(f"{arch}.{name}", repr(plain), value)


def _rope_scaling(file: GGUFFile, config: TransformerConfig) -> dict[str, Any] | None:
    """The settings that led to the factors by which a file divides its rotary frequencies.

    Those of Llama 3.1 and later differ in the largest factor alone. What they led to is compared.
    """
    if _ROPE_FACTORS not in file.tensors:
        return None
    factors = file.rows(_ROPE_FACTORS, slice(None))
    if (factors == 1).all():
        return None
    largest, low, high, context = float(factors.max()), 1.0, 4.0, 8192
    half = config.head_width // 2
    turns = context * config.rope_theta ** (-np.arange(half) / half) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / (kept + (1 - kept) / largest)
    # The file's are of float32, and so may be all on the way to them.
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4, atol=0):
        file.refuse(_ROPE_FACTORS, "those of Llama 3.1", factors.tolist())
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _meant(value: float) -> float:
    """The number that was stored in float32: its shortest decimal, as 1e-05."""
    return float(str(np.float32(value)))


def _weights(config: TransformerConfig, *, permuted: bool) -> Iterator[Weight]:
    """All tensors of a model."""
    c, width = config, config.head_width

    def weight(source: str, target: str, *shape: int) -> Weight:
        return Weight(source, target, shape, np.arange(shape[0]))

    def heads(source: str, target: str, count: int) -> Weight:
        return Weight(source, target, (count * width, c.hidden), _row_order(count, width, permuted))

    yield weight(_EMBEDDING, "model.embed_tokens.weight", c.vocab_size, c.hidden)
    for number in range(c.layers):
        there, here = f"blk.{number}.", f"model.layers.{number}."
        attention, mlp = f"{here}self_attn.", f"{here}mlp."
        yield weight(f"{there}attn_norm.weight", f"{here}input_layernorm.weight", c.hidden)
        yield heads(f"{there}attn_q.weight", f"{attention}q_proj.weight", c.heads)
        yield heads(f"{there}attn_k.weight", f"{attention}k_proj.weight", c.kv_heads)
        yield weight(
            f"{there}attn_v.weight", f"{attention}v_proj.weight", c.kv_heads * width, c.hidden
        )
        if c.attention_bias:
            for part, count in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
                yield weight(
                    f"{there}attn_{part}.bias", f"{attention}{part}_proj.bias", count * width
                )
        if c.qk_norm:
            for part in "qk":
                yield weight(
                    f"{there}attn_{part}_norm.weight", f"{attention}{part}_norm.weight", width
                )
        yield weight(
            f"{there}attn_output.weight", f"{attention}o_proj.weight", c.hidden, c.heads * width
        )
        yield weight(f"{there}ffn_norm.weight", f"{here}post_attention_layernorm.weight", c.hidden)
        yield weight(f"{there}ffn_gate.weight", f"{mlp}gate_proj.weight", c.mlp, c.hidden)
        yield weight(f"{there}ffn_up.weight", f"{mlp}up_proj.weight", c.mlp, c.hidden)
        yield weight(f"{there}ffn_down.weight", f"{mlp}down_proj.weight", c.hidden, c.mlp)
    yield weight("output_norm.weight", "model.norm.weight", c.hidden)
    if not c.tied_embeddings:
        yield weight(_OUTPUT, "lm_head.weight", c.vocab_size, c.hidden)


def _row_order(heads: int, width: int, permuted: bool) -> np.ndarray:
    """Which row of queries or keys in the file is which of Hugging Face's.

    Rotary positions turn pairs of rows. Hugging Face pairs row i of a head with row i + width / 2;
    files of the architecture "llama" hold the two next to each other.
    """
    rows = np.arange(heads * width)
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel() if permuted else rows
