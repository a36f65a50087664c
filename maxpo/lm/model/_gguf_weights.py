"""A model's tensors: from a GGUF file to one of safetensors with Hugging Face's names."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from maxpo import runs
from maxpo.lm.model._checkpoint_files import listed
from maxpo.lm.model._gguf_config import EMBEDDING, OUTPUT, ROPE_FACTORS
from maxpo.lm.model._gguf_file import GGUFFile
from maxpo.lm.model._safetensors import header
from maxpo.lm.model.config import TransformerConfig

__all__ = ["Weight", "list_weights", "write_weights"]

_ROWS = 4096  # How many become numbers at a time: a large embedding need not fit twice.


class Weight(NamedTuple):
    """A tensor, by its names in both formats; row i is row `order[i]` of the GGUF file's."""

    source: str
    target: str
    shape: tuple[int, ...]
    order: np.ndarray


def list_weights(file: GGUFFile, config: TransformerConfig) -> list[Weight]:
    """The tensors of a model, in the order of its layers.

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
    c, width = config, config.head_width

    def weight(source: str, target: str, *shape: int) -> Weight:
        return Weight(source, target, shape, np.arange(shape[0]))

    def heads(source: str, target: str, count: int) -> Weight:
        return Weight(source, target, (count * width, c.hidden), _row_order(count, width, permuted))

    yield weight(EMBEDDING, "model.embed_tokens.weight", c.vocab_size, c.hidden)
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
        yield weight(OUTPUT, "lm_head.weight", c.vocab_size, c.hidden)


def _row_order(heads: int, width: int, permuted: bool) -> np.ndarray:
    """Which row of queries or keys in the file is which of Hugging Face's.

    Rotary positions turn pairs of rows. Hugging Face pairs row i of a head with row i + width / 2;
    files of the architecture "llama" hold the two next to each other.
    """
    rows = np.arange(heads * width)
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel() if permuted else rows
