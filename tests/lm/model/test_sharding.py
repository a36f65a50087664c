"""Where arrays lie, which of them decay, and that none is forgotten."""

import jax
import numpy as np
import pytest
from flax import nnx

from maxpo.lm.model.config import make_config
from maxpo.lm.model.sharding import RULES, decays, layout
from maxpo.lm.model.transformer import Transformer

MESH = jax.sharding.AbstractMesh((4, 2), ("data", "model"))


class Shape:
    def __init__(self, *shape):
        self.shape, self.ndim = shape, len(shape)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"qkv": Shape(2, 16, 3, 4, 6)},
            r"axis 2 of qkv to divide by model = 2, .* \[2, 16, 3, 4, 6",
        ),
        ({"a": {"embedding": Shape(15, 8)}}, r"axis 0 of a.embedding to divide by model = 2"),
        ({"down": Shape(2, 8, 6)}, r"axis 2 of down to divide by data = 4"),
    ],
)
def test_sizes_that_do_not_divide_are_named(tree, message):
    with jax.sharding.use_abstract_mesh(MESH), pytest.raises(ValueError, match=message):
        layout(tree, RULES, fully_sharded=True)


def test_sizes_that_do_not_divide_are_named_as_in_the_model():
    mesh = jax.sharding.AbstractMesh((1, 3), ("data", "model"))
    message = r"axis 1 of layers\.down to divide by model = 3, got the shape \[3, 256, 96\]"
    params = shapes(vocab_size=15, heads=3, kv_heads=3, mlp=256)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ValueError, match=message):
        layout(params, RULES, fully_sharded=True)


def shapes(vocab_size=16, **overrides):
    config = make_config("nano", vocab_size=vocab_size, context_length=8, **overrides)
    return nnx.state(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    "overrides", [{}, {"qk_norm": True, "tied_embeddings": False}, {"attention_bias": True}]
)
def test_every_array_of_a_transformer_has_a_rule_of_its_rank(overrides):
    for path, leaf in jax.tree.leaves_with_path(shapes(**overrides)):
        (name,) = {str(getattr(key, "key", "")) for key in path} & set(RULES)
        assert len(RULES[name].axes) == leaf.ndim, name
        assert RULES[name].decays == ("norm" not in name and "bias" not in name), name


def test_without_a_mesh_there_is_no_layout():
    assert layout({"qkv": np.zeros((2, 3))}, RULES, fully_sharded=True) is None
    assert layout({"unknown": np.zeros((2, 3))}, None, fully_sharded=True) is None


def test_a_matrix_without_a_rule_is_an_error_wherever_it_would_be_guessed():
    tree = {"adapter": {"low_rank": Shape(4, 2), "scale": Shape(4), "count": Shape()}}
    message = r"rules: .* got none for adapter.low_rank of the shape \[4, 2\]"
    for rules in (RULES, None):
        with jax.sharding.use_abstract_mesh(MESH), pytest.raises(ValueError, match=message):
            layout(tree, rules, fully_sharded=False)
    with pytest.raises(ValueError, match=message):
        decays(tree, RULES)
    # A model without rules decays by rank.
    assert decays(tree, None) == {"adapter": {"low_rank": True, "scale": False, "count": False}}
    del tree["adapter"]["low_rank"]
    with jax.sharding.use_abstract_mesh(MESH):
        specs = layout(tree, RULES, fully_sharded=False)
    assert specs["adapter"]["scale"] == jax.sharding.PartitionSpec()


def test_a_moment_of_another_rank_is_whole_everywhere():
    with jax.sharding.use_abstract_mesh(MESH):
        specs = layout({"nu": {"down": Shape(2, 8)}}, RULES, fully_sharded=True)
    assert specs["nu"]["down"] == jax.sharding.PartitionSpec()
