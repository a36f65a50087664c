"""Shapes of transformers, by size and field by field."""

import dataclasses
import math
from typing import Any

__all__ = ["SIZES", "TransformerConfig", "make_config"]

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
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        names = ("vocab_size", "context_length", "hidden", "layers", "heads", "kv_heads", "mlp")
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
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
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not 0 < number < math.inf:
                raise ValueError(f"expected a positive {name}, got {number!r}")
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
