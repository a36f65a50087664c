"""Which tensors of a checkpoint make up which parameter, as a whole and slice by slice."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from maxpo.lm.model._safetensors import Index
from maxpo.lm.model.config import TransformerConfig

__all__ = ["EMBEDDING", "Entry", "Source", "entries", "shapes"]

EMBEDDING = "model.embed_tokens.weight"


class Source(NamedTuple):
    """A tensor of the checkpoint; `{}` in the pattern is the number of the layer."""

    pattern: str
    shape: tuple[int, ...]

    def name(self, layer: int) -> str:
        """The tensor's name."""
        return self.pattern.format(layer)


class Entry(NamedTuple):
    """A parameter of ours, or a layer of a stacked one, and the tensors that it is made of.

    Attributes:
      path: Names of the parameter's attributes, from the model on.
      sources: The tensors.
      views: A layer, or a slice of one, to views of its parts, one for each tensor, whose numbers
        are in the tensor's order; all but the last of their axes may be one of the tensor's.
      indices: A slice of a layer to those of the tensors that it is made of.
    """

    path: tuple[str, ...]
    sources: tuple[Source, ...]
    views: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    indices: Callable[[Index], tuple[Index, ...]]

    @property
    def is_stacked(self) -> bool:
        """Whether the parameter's first axis is that of layers."""
        return self.path[0] == "layers"


def entries(config: TransformerConfig) -> list[Entry]:
    """All parameters. Torch keeps matrices as `[outputs, inputs]`."""
    c, width = config, config.head_width
    group = c.heads // c.kv_heads

    def same(path: tuple[str, ...], pattern: str, *shape: int) -> Entry:
        return Entry(path, (Source(pattern, shape),), lambda x: (x,), lambda at: (at,))

    def layer(name: str, pattern: str, *shape: int) -> Entry:
        """A vector, or a matrix to be transposed."""
        source = Source(f"model.layers.{{}}.{pattern}", shape)
        return Entry(("layers", name), (source,), lambda x: (x.T,), lambda at: (at[::-1],))

    def heads(name: str, kind: str, *inputs: int) -> Entry:
        """Queries of all heads, keys and values, side by side for each head of keys."""
        counts = (group, 1, 1)  # For each head of keys.
        sources = tuple(
            Source(
                f"model.layers.{{}}.self_attn.{part}_proj.{kind}",
                (c.kv_heads * count * width, *inputs),
            )
            for part, count in zip("qkv", counts, strict=True)
        )

        def views(x: np.ndarray) -> tuple[np.ndarray, ...]:
            parts = np.split(x, [group, group + 1], axis=-2)
            return tuple(np.moveaxis(part, 0, -1) if inputs else part for part in parts)

        def indices(at: Index) -> tuple[Index, ...]:
            *of_inputs, of_heads, _, _ = at  # Heads are not cut.
            rows = [count * width for count in counts]
            return tuple(
                (slice(of_heads.start * each, of_heads.stop * each), *of_inputs) for each in rows
            )

        return Entry(("layers", name), sources, views, indices)

    found = [
        same(("embedding",), EMBEDDING, c.vocab_size, c.hidden),
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
        found.append(same(("output",), "lm_head.weight", c.vocab_size, c.hidden))
    if c.attention_bias:
        found.append(heads("qkv_bias", "bias"))
    if c.qk_norm:
        found.append(layer("query_norm", "self_attn.q_norm.weight", width))
        found.append(layer("key_norm", "self_attn.k_norm.weight", width))
    return found


def shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {
        source.name(number): source.shape
        for entry in entries(config)
        for number in range(config.layers if entry.is_stacked else 1)
        for source in entry.sources
    }
