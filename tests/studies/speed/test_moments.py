"""Bytes of moments, counted by hand and in the optimizers' own states."""

import math

import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from maxpo import training
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.sharding import RULES
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.studies.speed.moments import Moments, moment_bytes
from maxpo.studies.speed.work import matrix_shapes

SHAPE = TransformerConfig(
    vocab_size=200, context_length=8, hidden=128, layers=2, heads=4, kv_heads=2, mlp=300
)
EMBEDDING = 200 * 128
# A layer: queries, keys and values of 32 numbers for each of 2 heads, their output, three matrices.
LAYERS = 2 * (128 * 2 * 4 * 32 + 128 * 128 + 3 * 128 * 300)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("adamw", Moments(8 * (EMBEDDING + LAYERS), 0)),
        ("adamw:moments=bfloat16", Moments(6 * (EMBEDDING + LAYERS), 0)),
        ("lion", Moments(4 * (EMBEDDING + LAYERS), 0)),
        ("lion:moments=bfloat16", Moments(2 * (EMBEDDING + LAYERS), 0)),
        ("muon", Moments(8 * EMBEDDING + 4 * LAYERS, 0)),
        ("muon:moments=bfloat16", Moments(6 * EMBEDDING + 2 * LAYERS, 0)),
        # Heads of 32 are not factored.
        (
            "adafactor",
            Moments(
                4 * 2 * 128 * 2 * 4 * 32,
                4 * (200 + 128 + 2 * (128 + 128 + 3 * (128 + 300))),
            ),
        ),
    ],
)
def test_bytes_are_those_of_the_states(spec, expected):
    assert moment_bytes(SHAPE, spec) == expected
    settings = {"optimizer": spec, "max_gradient_norm": 1.0, "b2": 0.95, "weight_decay": 0.1}
    optimizer = make_optimizer(ConfigDict(settings), 0.1, rules=RULES)

    def init():
        params = nnx.state(Transformer(SHAPE, rngs=nnx.Rngs(0)))
        return training.init_state(params, optimizer)

    state = jax.eval_shape(init)
    found = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    # Norms are not counted: two moments for each of 5 vectors, and a few numbers.
    assert sum(expected) < found <= sum(expected) + 8 * 5 * 128 + 100


def test_all_matrices_but_the_embeddings_are_made_orthogonal():
    shape = TransformerConfig(**{**vars(SHAPE), "tied_embeddings": False})
    matrices = {name for name in matrix_shapes(shape) if RULES[name].matrix}
    assert matrices == {"qkv", "attention_out", "gate", "up", "down"}
    for name in matrices:
        inputs, outputs = RULES[name].matrix
        axes = matrix_shapes(shape)[name]
        assert math.prod(axes[i] for i in inputs) in (128, 300)
        assert not set(inputs) & set(outputs)
