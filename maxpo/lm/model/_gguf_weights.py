"""A model's tensors: from a GGUF file to one of safetensors with Hugging Face's names."""

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from maxpo import runs
from maxpo.lm.model._checkpoint_entries import shapes
from maxpo.lm.model._checkpoint_files import listed
from maxpo.lm.model._gguf_config import EMBEDDING, OUTPUT, ROPE_FACTORS
from maxpo.lm.model._gguf_file import GGUFFile
from maxpo.lm.model._safetensors import header
from maxpo.lm.model.config import TransformerConfig

__all__ = ["Weight", "list_weights", "write_weights"]

# GGUF's names by Hugging Face's, of the model's tensors and of a layer's, without their ends.
_OF_MODEL = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": OUTPUT,
}
_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

_ROWS = 4096  # How many become numbers at a time: a large embedding need not fit twice.


class Weight(NamedTuple):
    """A tensor, by its names in both formats; row i is row `order[i]` of the GGUF file's."""

    source: str
    target: str
    shape: tuple[int, ...]
    order: np.ndarray


def list_weights(file: GGUFFile, config: TransformerConfig) -> list[Weight]:
    """The tensors of a model.

    Raises:
      ValueError: If the file lacks some, has others, or has them of other shapes or of a type that
        the package `gguf` cannot read, naming them.
    """
    weights = list(_weights(config, permuted=file.architecture == "llama"))
    # How positions are turned, which config.json says.
    extra = file.tensors.keys() - {weight.source for weight in weights} - {ROPE_FACTORS}
    missing = [weight.source for weight in weights if weight.source not in file.tensors]
    misshapen = [
        weight.source
        for weight in weights
        if weight.source in file.tensors
        and tuple(reversed(file.tensors[weight.source].shape)) != weight.shape
    ]
    problems = {
        "missing": missing,
        "not expected": sorted(extra),
        "of another shape": misshapen,
    }
    if any(problems.values()):
        raise ValueError(
            f"the tensors in {file.path} are not those of its metadata; {listed(problems)}"
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
    output.write(header({weight.target: weight.shape for weight in weights}, dtype))
    for weight in runs.progress(weights, unit="tensors"):
        for start in range(0, weight.shape[0], _ROWS):
            rows = file.rows(weight.source, weight.order[start : start + _ROWS])
            output.write(rows.astype(stored).tobytes())


def _weights(config: TransformerConfig, *, permuted: bool) -> Iterator[Weight]:
    """All tensors of a model."""
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads} if permuted else {}
    for target, shape in shapes(config).items():
        source = _source(target)
        count = heads.get(source.split(".")[-2])
        rows = np.arange(shape[0]) if count is None else _neighbors(count, config.head_width)
        yield Weight(source, target, shape, rows)


def _source(target: str) -> str:
    """The name in a GGUF file of a tensor that Hugging Face calls `target`."""
    stem, _, kind = target.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"blk.{layer[1]}.{_OF_LAYER[layer[2]]}.{kind}" if layer else _OF_MODEL[target]


def _neighbors(heads: int, width: int) -> np.ndarray:
    """Which row of queries or keys in a permuted file is which of Hugging Face's.

    Rotary positions turn pairs of rows. Hugging Face pairs row i of a head with row i + width / 2;
    files of the architecture "llama" hold the two next to each other.
    """
    return np.arange(heads * width).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
