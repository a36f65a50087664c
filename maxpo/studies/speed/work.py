"""How much work an update of a transformer is, from its shape."""

import math

from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.sharding import ADAPTED

__all__ = [
    "adapter_count",
    "matrix_shapes",
    "parameter_count",
    "parameters_of_layers",
    "update_flops",
]


def matrix_shapes(shape: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """All parameters that are not norms or biases, by their names in `RULES`."""
    heads, width = shape.heads * shape.head_width, shape.head_width
    group = shape.heads // shape.kv_heads
    matrices: dict[str, tuple[int, ...]] = {
        "embedding": (shape.vocab_size, shape.hidden),
        "qkv": (shape.layers, shape.hidden, shape.kv_heads, group + 2, width),
        "attention_out": (shape.layers, heads, shape.hidden),
        "gate": (shape.layers, shape.hidden, shape.mlp),
        "up": (shape.layers, shape.hidden, shape.mlp),
        "down": (shape.layers, shape.mlp, shape.hidden),
    }
    if not shape.tied_embeddings:
        matrices["output"] = matrices["embedding"]
    return matrices


def parameter_count(shape: TransformerConfig) -> int:
    """Entries of all matrices."""
    return sum(math.prod(matrix) for matrix in matrix_shapes(shape).values())


def adapter_count(shape: TransformerConfig, rank: int) -> int:
    """Entries of adapters of all matrices that may have one."""
    matrices = matrix_shapes(shape)
    inputs_and_outputs = (matrices[name][1] + math.prod(matrices[name][2:]) for name in ADAPTED)
    return shape.layers * rank * sum(inputs_and_outputs)


def parameters_of_layers(shape: TransformerConfig) -> int:
    """Entries of all matrices but the embeddings."""
    embeddings = shape.vocab_size * shape.hidden * (1 if shape.tied_embeddings else 2)
    return parameter_count(shape) - embeddings


def update_flops(
    shape: TransformerConfig,
    *,
    prompts: int,
    group_size: int,
    prompt_length: int,
    new_tokens: int,
) -> float:
    """Operations of the matrix products in an update that runs each prompt once for its group.

    With P prompts of S tokens and P N completions of T tokens, of which the last predicts nothing,
    n parameters in L layers of A heads of width W, vocabulary V and hidden width D:

        positions = P S + P N (T - 1)
        pairs     = P S (S + 1) / 2 + P N ((T - 1) S + (T - 1) T / 2)
        flops     = 6 (positions n + 2 pairs L A W + P N T V D)

    Two for each multiplication of the forward pass and twice as many in the backward pass; what is
    computed again to save memory does not count.
    """
    P, N, S, T = prompts, group_size, prompt_length, new_tokens
    positions = P * S + P * N * (T - 1)
    pairs = P * S * (S + 1) // 2 + P * N * ((T - 1) * S + (T - 1) * T // 2)
    products = (
        positions * parameters_of_layers(shape)
        + pairs * 2 * shape.layers * shape.heads * shape.head_width
        + P * N * T * shape.vocab_size * shape.hidden
    )
    return 6 * float(products)
