"""A model's shape, from a GGUF file's metadata."""

import dataclasses
from typing import Any

import numpy as np

from maxpo.lm.model._gguf_file import GGUFFile
from maxpo.lm.model.config import Llama3Rope, TransformerConfig

__all__ = ["EMBEDDING", "OUTPUT", "ROPE_FACTORS", "read_config"]

# Tensors that say something of the shape, too.
EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"

_ARCHITECTURES = ("llama", "qwen2", "qwen3")


def read_config(file: GGUFFile) -> TransformerConfig:
    """The shape of the model that a file holds.

    Raises:
      ValueError: If it is of another architecture, has a feature that `Transformer` lacks, such
        as rotary positions that are scaled in another way than those of Llama 3.1, or its metadata
        are missing, ill-typed or do not fit together.
    """
    arch = file.architecture
    if arch not in _ARCHITECTURES:
        file.refuse("general.architecture", f"one of {', '.join(_ARCHITECTURES)}", arch)
    if EMBEDDING not in file.tensors:
        raise ValueError(f"{file.path} has no tensor {EMBEDDING}")
    _refuse_features(file)
    heads = file.required(f"{arch}.attention.head_count", int)
    theta = file.optional(f"{arch}.rope.freq_base", float)
    fields: dict[str, Any] = {
        "vocab_size": int(file.tensors[EMBEDDING].shape[-1]),
        "context_length": file.required(f"{arch}.context_length", int),
        "hidden": file.required(f"{arch}.embedding_length", int),
        "layers": file.required(f"{arch}.block_count", int),
        "heads": heads,
        "kv_heads": file.optional(f"{arch}.attention.head_count_kv", int) or heads,
        "mlp": file.required(f"{arch}.feed_forward_length", int),
        "head_dim": file.optional(f"{arch}.attention.key_length", int),
        "tied_embeddings": OUTPUT not in file.tensors,
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
    return dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))


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


def _rope_scaling(file: GGUFFile, config: TransformerConfig) -> Llama3Rope | None:
    """The settings that led to the factors by which a file divides its rotary frequencies.

    Those of Llama 3.1 and later differ in the largest factor alone. What they led to is compared.
    """
    if ROPE_FACTORS not in file.tensors:
        return None
    factors = file.rows(ROPE_FACTORS, slice(None))
    if (factors == 1).all():
        return None
    largest, low, high, context = float(factors.max()), 1.0, 4.0, 8192
    half = config.head_width // 2
    turns = context * config.rope_theta ** (-np.arange(half) / half) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / (kept + (1 - kept) / largest)
    # The file's are of float32, and so may be all on the way to them.
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4, atol=0):
        file.refuse(ROPE_FACTORS, "those of Llama 3.1", factors.tolist())
    return Llama3Rope(largest, low, high, context)


def _meant(value: float) -> float:
    """The number that was stored in float32: its shortest decimal, as 1e-05."""
    return float(str(np.float32(value)))
