"""Adapters against the chain rule, the merged model, and the model without them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigrams import Bigrams
from flax import nnx

from maxpo.lm.model.config import make_config
from maxpo.lm.model.generation import generate
from maxpo.lm.model.lora import LoRA, adapt, adapters_of, merged
from maxpo.lm.model.policy import trainable
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.sharding import ADAPTED, RULES, decays, layout
from maxpo.lm.model.token_log_probs import completion_log_probs
from maxpo.lm.model.transformer import Transformer

P, N, S, T = 2, 2, 4, 3
# A matrix is known by its shape, which no others and no activations have.
SHAPE = {"hidden": 10, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 14}
SHAPE |= {"qk_norm": True, "attention_bias": True}
VOCABULARY = 11
LORA = LoRA(2, alpha=3.0)


def make_model(**fields):
    config = make_config("nano", vocab_size=VOCABULARY, context_length=8, **{**SHAPE, **fields})
    return Transformer(config, rngs=nnx.Rngs(0))


def make_adapted(lora=LORA, *, trained=True, **fields):
    """A model whose adapters are random, as after training, or as they begin."""
    graph, adapters, frozen = trainable(adapt(make_model(**fields), lora, jax.random.key(1)))
    if trained:
        rng = np.random.default_rng(2)
        adapters = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(x.dtype), adapters)
    return nnx.merge(graph, adapters, frozen)


def make_batch():
    rng = np.random.default_rng(3)
    mask = np.arange(S) >= np.array([[0], [2]])
    prompts = Prompts(rng.integers(0, VOCABULARY, (P, S)), mask)
    lengths = np.array([[3, 1], [2, 3]])
    tokens = rng.integers(0, VOCABULARY, (P, N, T))
    return prompts, tokens, np.arange(T) < lengths[..., None]


@nnx.jit
def log_probs(model, batch):
    return completion_log_probs(model, *batch).log_probs


def test_new_adapters_change_nothing():
    model, adapted = make_model(), make_adapted(trained=False)
    assert adapters_of(model) is None  # It is not changed.
    batch = make_batch()
    np.testing.assert_array_equal(log_probs(adapted, batch), log_probs(model, batch))
    # They are there all the same, and random.
    _, adapters, _ = trainable(adapted)
    found = {path[-1]: x[...] for path, x in nnx.to_flat_state(adapters)}
    assert set(found) == {f"{name}_{part}" for name in ADAPTED for part in "ab"}
    for name, array in found.items():
        assert array.dtype == jnp.float32
        width = getattr(model.layers, name[:-2]).shape[1]
        if name.endswith("_a"):
            assert array.shape == (2, width, 2)
            assert 0.7 * width**-0.5 < np.abs(array).max() <= width**-0.5
        else:
            assert array.shape == (2, 2, *getattr(model.layers, name[:-2]).shape[2:])
            assert not np.any(array)


@pytest.mark.parametrize("targets", [ADAPTED, ("qkv", "down")])
def test_the_merged_model_computes_the_same(targets):
    adapted = make_adapted(LoRA(2, 3.0, targets))
    plain = nnx.merge(nnx.graphdef(make_model()), merged(adapted))
    batch = make_batch()
    found = log_probs(adapted, batch)
    np.testing.assert_allclose(found, log_probs(plain, batch), rtol=1e-5, atol=1e-6)
    assert np.abs(found - log_probs(make_model(), batch)).max() > 0.01


def test_merging_loses_nothing_to_bfloat16():
    adapted = make_adapted(LoRA(1, 1e-4), param_dtype="bfloat16")
    kernel = np.asarray(adapted.layers.gate[...], np.float64)
    parts = adapted.layers.adapters
    a, b = (np.asarray(x[...], np.float64) for x in (parts.gate_a, parts.gate_b))
    expected = kernel + 1e-4 * np.einsum("lir,lro->lio", a, b)
    found = merged(adapted)["layers"]["gate"][...]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Most of it would be lost.
    assert np.mean(found.astype(jnp.bfloat16) == kernel.astype(jnp.bfloat16)) > 0.9
    model = make_model()
    assert merged(model) == nnx.state(model)


def test_gradients_are_those_of_the_chain_rule():
    """With dW the gradient of the merged matrix, dA = scale dW B^T and dB = scale A^T dW."""
    adapted = make_adapted()
    graph, adapters, frozen = trainable(adapted)

    def loss(model):
        prompts, tokens, mask = make_batch()
        weights = jnp.cos(jnp.arange(tokens.size, dtype=jnp.float32)).reshape(tokens.shape)
        return jnp.sum(weights * completion_log_probs(model, prompts, tokens, mask).log_probs)

    found = jax.jit(jax.grad(lambda x: loss(nnx.merge(graph, x, frozen))))(adapters)
    plain = nnx.graphdef(make_model())
    of_matrices = jax.jit(jax.grad(lambda x: loss(nnx.merge(plain, x))))(merged(adapted))
    for name in ADAPTED:
        of_matrix = np.asarray(of_matrices["layers"][name][...], np.float64)
        of_matrix = of_matrix.reshape(*of_matrix.shape[:2], -1)
        a, b, of_a, of_b = (
            np.asarray(state["layers"]["adapters"][f"{name}_{part}"][...], np.float64)
            for state in (adapters, found)
            for part in "ab"
        )
        scale, b = 1.5, b.reshape(*b.shape[:2], -1)  # alpha / rank = 3 / 2
        expected = scale * np.einsum("lio,lro->lir", of_matrix, b)
        np.testing.assert_allclose(of_a, expected, rtol=1e-3, atol=1e-5, err_msg=name)
        expected = scale * np.einsum("lir,lio->lro", a, of_matrix)
        of_b = of_b.reshape(expected.shape)
        np.testing.assert_allclose(of_b, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_samples_are_drawn_from_the_distribution_that_is_scored():
    model = make_adapted()
    prompts = make_batch()[0]
    drawn = generate(
        model, prompts, group_size=N, max_new_tokens=T, eos_id=0, pad_id=0, key=jax.random.key(4)
    )
    scored = log_probs(model, (prompts, drawn.tokens, drawn.mask))
    np.testing.assert_allclose(drawn.log_probs, scored, rtol=1e-4, atol=1e-5)


def products_of_gradients(whole):
    """Shapes of products in the compiled gradient by the adapters, or by all parameters."""
    graph, adapters, frozen = trainable(make_adapted(remat=True))

    def loss(adapters, frozen):
        model = nnx.merge(graph, adapters, frozen)
        return jnp.sum(completion_log_probs(model, *make_batch()).log_probs)

    gradient = jax.grad(loss, argnums=(0, 1) if whole else 0)
    text = jax.jit(gradient).lower(adapters, frozen).compile().as_text()
    return {tuple(map(int, x.split(","))) for x in re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)}


def test_no_gradient_of_a_frozen_matrix_is_computed():
    layers = make_model().layers
    frozen = [{(VOCABULARY, SHAPE["hidden"])}]
    for name in ADAPTED:
        _, width, *outputs = getattr(layers, name).shape
        frozen.append({(width, math.prod(outputs)), (math.prod(outputs), width)})
    of_all, of_adapters = (products_of_gradients(whole=whole) for whole in (True, False))
    assert all(either_way & of_all for either_way in frozen)
    assert not any(either_way & of_adapters for either_way in frozen)


def test_policies_of_other_kinds_train_what_they_mark():
    policy = Bigrams(rngs=nnx.Rngs(0))
    _, params, frozen = trainable(policy)
    assert set(params) == {"states", "output"}
    assert not frozen
    policy.change = nnx.LoRAParam(jnp.zeros(3))
    graph, params, frozen = trainable(policy)
    assert (set(params), set(frozen)) == ({"change"}, {"states", "output"})
    nnx.merge(graph, params, frozen)


def test_every_adapter_has_a_rule_that_fits_its_matrix():
    shapes = nnx.state(nnx.eval_shape(make_adapted), nnx.LoRAParam)["layers"]["adapters"]
    assert all(decay for decay in jax.tree.leaves(decays(shapes, RULES)))
    mesh = jax.sharding.AbstractMesh((2, 1), ("data", "model"))
    with jax.sharding.use_abstract_mesh(mesh):
        found = layout(shapes, RULES, fully_sharded=True)
        matrices = nnx.state(nnx.eval_shape(make_model))["layers"]
        of_matrices = layout(matrices, RULES, fully_sharded=True)

    def axes(specs, name, rank):
        spec = tuple(specs[name].get_value())
        return [*spec, *[None] * (rank - len(spec))]

    for name in ADAPTED:
        rank = len(matrices[name].shape)
        layer, of_input, *of_outputs = axes(of_matrices, name, rank)
        assert axes(found, f"{name}_a", 3) == [layer, of_input, None]
        assert axes(found, f"{name}_b", rank) == [layer, None, *of_outputs]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"lora\.rank: expected a positive integer, got 0"),
        ({"rank": True}, r"lora\.rank: expected a positive integer, got True"),
        ({"rank": 1, "alpha": 0}, r"lora\.alpha: expected a positive number, got 0"),
        ({"rank": 1, "alpha": float("nan")}, r"lora\.alpha: expected a positive number, got nan"),
        ({"rank": 1, "targets": ()}, r"lora\.targets: expected some of qkv, .*, got \[\]"),
        ({"rank": 1, "targets": ["q_proj"]}, r"lora\.targets: .* each once, got \['q_proj'\]"),
        ({"rank": 1, "targets": ["up", "up"]}, r"lora\.targets: .*, got \['up', 'up'\]"),
    ],
)
def test_adapters_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LoRA(**fields)


def test_models_that_get_no_adapters():
    with pytest.raises(ValueError, match="lora: expected a Transformer, got Bigrams"):
        adapt(Bigrams(rngs=nnx.Rngs(0)), LORA, jax.random.key(0))
    with pytest.raises(ValueError, match="lora: expected none for a policy that has adapters"):
        adapt(make_adapted(), LORA, jax.random.key(0))
