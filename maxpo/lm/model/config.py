"""Shapes of transformers, by size and field by field."""

import dataclasses
import math
from typing import Any

__all__ = ["SIZES", "Llama3Rope", "TransformerConfig", "make_config"]

_DTYPES = ("float32", "bfloat16")

SIZES: dict[str, dict[str, Any]] = {
    # Parameters without the embedding: 0.3M, 1M, 56M, 0.36B and 0.97B.
    "nano": {"hidden": 96, "layers": 3, "heads": 4, "kv_heads": 2, "mlp": 256},
    "tiny": {"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2, "mlp": 512},
    "60m": {"hidden": 640, "layers": 12, "heads": 10, "kv_heads": 2, "mlp": 1920},
    "0.5b": {  # The shape of Qwen2.5-0.5B.
        "hidden": 896,
        "layers": 24,
        "heads": 14,
        "kv_heads": 2,
        "mlp": 4864,
        "attention_bias": True,
        "rope_theta": 1e6,
    },
    "1b": {  # The shape of Llama-3.2-1B.
        "hidden": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "mlp": 8192,
        "rope_theta": 5e5,
        "norm_epsilon": 1e-5,
    },
}


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Slower rotary positions, by which Llama 3.1 and 3.2 got a longer context; named as theirs.

    Frequencies that turn more than `high_freq_factor` times within the original context stay, those
    that turn less than `low_freq_factor` times are divided by `factor`, and in between they are a
    mean of both, linear in the number of turns.

    Attributes:
      factor: At least 1.
      low_freq_factor: Turns below which a frequency is divided.
      high_freq_factor: Turns above which it stays.
      original_max_position_embeddings: The context before.

    Raises:
      ValueError: If a number is not of its range.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name, expected, fits in (
            ("factor", "a number of at least 1", _is_positive(self.factor) and self.factor >= 1),
            ("low_freq_factor", "a positive number", _is_positive(self.low_freq_factor)),
            ("high_freq_factor", "a positive number", _is_positive(self.high_freq_factor)),
            (
                "original_max_position_embeddings",
                "a positive integer",
                _is_size(self.original_max_position_embeddings),
            ),
        ):
            if not fits:
                raise ValueError(f"expected {name} to be {expected}, got {getattr(self, name)!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"expected high_freq_factor to be above low_freq_factor = {self.low_freq_factor}, "
                f"got {self.high_freq_factor}"
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and arithmetic of a `Transformer`.

    Attributes:
      vocab_size: V, number of tokens.
      context_length: Longest prompt and completion together.
      hidden: D, width of the residual stream.
      layers: L, number of layers.
      heads: Query heads.
      kv_heads: Heads of keys and values, a divisor of `heads`.
      mlp: Width inside the SwiGLU.
      head_dim: Width of a head, even. None: `hidden // heads`.
      tied_embeddings: One matrix serves as embedding and unembedding.
      qk_norm: RMSNorm on each head's queries and keys, as in Qwen3.
      attention_bias: Biases on queries, keys and values, as in Qwen2.
      rope_theta: Base of the rotary positions.
      rope_scaling: How their frequencies are scaled, as in Llama 3.1 and 3.2. None: not at all.
      norm_epsilon: Added to mean squares.
      dtype: Dtype of the computation. Norms, softmax and logits are float32 whatever it is.
      param_dtype: Dtype of the parameters.
      remat: Keep only each layer's input for the backward pass and compute the rest again: a layer
        costs a third more and takes far less memory.

    Raises:
      ValueError: If a size is not positive or does not fit, or a dtype is unknown.
    """

    vocab_size: int
    context_length: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    head_dim: int | None = None
    tied_embeddings: bool = True
    qk_norm: bool = False
    attention_bias: bool = False
    rope_theta: float = 1e4
    rope_scaling: Llama3Rope | None = None
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        names = ("vocab_size", "context_length", "hidden", "layers", "heads", "kv_heads", "mlp")
        for name in names:
            value = getattr(self, name)
            if not _is_size(value):
                raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"expected kv_heads to divide heads = {self.heads}, got kv_heads = {self.kv_heads}"
            )
        if self.head_dim is None:
            if self.hidden % self.heads:
                raise ValueError(
                    f"expected heads to divide hidden = {self.hidden} where no head_dim is given, "
                    f"got heads = {self.heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if isinstance(self.head_dim, bool) or not isinstance(self.head_dim, int):
            raise ValueError(f"expected head_dim to be an integer or None, got {self.head_dim!r}")
        if self.head_width < 2 or self.head_width % 2:
            raise ValueError(
                f"expected an even head_dim, for rotary positions, got {self.head_dim!r}"
            )
        for name in ("rope_theta", "norm_epsilon"):
            number = getattr(self, name)
            if not _is_positive(number):
                raise ValueError(f"expected a positive {name}, got {number!r}")
        if not isinstance(self.rope_scaling, Llama3Rope | None):
            raise ValueError(
                f"expected rope_scaling to be a Llama3Rope or None, got {self.rope_scaling!r}"
            )
        for name in ("tied_embeddings", "qk_norm", "attention_bias", "remat"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"expected {name} to be a bool, got {getattr(self, name)!r}")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(
                    f"expected {name} to be one of {_DTYPES}, got {getattr(self, name)!r}"
                )

    @property
    def head_width(self) -> int:
        """`head_dim` as an int, which it always is after construction."""
        assert self.head_dim is not None
        return self.head_dim


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def make_config(
    size: str, *, vocab_size: int, context_length: int, **overrides: Any
) -> TransformerConfig:
    """The configuration of a named size.

    Args:
      size: One of `SIZES`.
      vocab_size: V.
      context_length: Longest prompt and completion together.
      **overrides: Any other field of `TransformerConfig`.

    Raises:
      ValueError: If the size or a field is unknown, or fields do not fit.

    >>> make_config("tiny", vocab_size=128, context_length=96, dtype="bfloat16").head_dim
    32
    """
    if size not in SIZES:
        raise ValueError(f"expected size to be one of {tuple(SIZES)}, got {size!r}")
    known = [field.name for field in dataclasses.fields(TransformerConfig)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"expected overrides to be fields out of {known}, got {name!r}")
    return TransformerConfig(
        vocab_size=vocab_size, context_length=context_length, **{**SIZES[size], **overrides}
    )
