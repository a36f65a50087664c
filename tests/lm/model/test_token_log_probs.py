"""Chunked log-probabilities against whole ones: values, gradients and memory."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs, token_log_probs
from maxpo.lm.model.transformer import Transformer

D, V = 6, 9


def make_inputs(shape=(2, 5), seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*shape, D)).astype(np.float32)
    unembedding = rng.normal(size=(V, D)).astype(np.float32)
    return hidden, unembedding, rng.integers(0, V, shape)


def plain(hidden, unembedding, targets, temperature=1.0):
    log_p = jax.nn.log_softmax(hidden @ unembedding.T / temperature)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("chunk_size", [1, 3, 5, 10, 1000])
def test_values(chunk_size, temperature):
    """With chunks that fit, that do not, of one token and of all."""
    hidden, unembedding, targets = make_inputs()
    results = token_log_probs(
        hidden, unembedding, targets, temperature=temperature, chunk_size=chunk_size
    )
    log_p = scipy.special.log_softmax(
        hidden.astype(np.float64) @ unembedding.T.astype(np.float64) / temperature, axis=-1
    )
    expected = np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(results.log_probs, expected, rtol=1e-5, atol=1e-6)
    entropy = -(np.exp(log_p) * log_p).sum(axis=-1)
    np.testing.assert_allclose(results.entropy, entropy, rtol=1e-4, atol=1e-5)
    assert results.log_probs.dtype == results.entropy.dtype == jnp.float32


@pytest.mark.parametrize("chunk_size", [3, 1000])
def test_gradients(chunk_size):
    """Of both results at once, in both arguments, at a traced temperature."""
    hidden, unembedding, targets = make_inputs()
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(2, 2, 5))

    def loss(function, hidden, unembedding, temperature):
        results = function(hidden, unembedding, targets, temperature=temperature)
        return sum(jnp.sum(w * x) for w, x in zip(weights, results, strict=True))

    chunked = functools.partial(token_log_probs, chunk_size=chunk_size)
    ours, theirs = (
        jax.jit(jax.grad(functools.partial(loss, f), argnums=(0, 1)))(hidden, unembedding, 0.7)
        for f in (chunked, plain)
    )
    for x, y in zip(ours, theirs, strict=True):
        assert np.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_a_logit_of_no_chance_adds_nothing_to_the_entropy():
    hidden = np.array([[1e3] + [0.0] * (D - 1)], np.float32)
    unembedding = np.eye(V, D, dtype=np.float32)
    value, gradient = jax.value_and_grad(
        lambda h: jnp.sum(token_log_probs(h, unembedding, np.array([0])).entropy)
    )(hidden)
    assert value == 0
    assert np.array_equal(gradient, np.zeros((1, D)))


def largest(jaxpr):
    """Elements of the largest array in a program, those of its inner programs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [getattr(v.aval, "size", 0) for v in (*equation.invars, *equation.outvars)]
        sizes += [largest(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params)]
    return max(sizes)


def test_no_array_holds_all_logits():
    """In the program and, by its memory, in what the compiler makes of it; V = 5000 needs 80 MB."""
    tokens, vocabulary, width = 4096, 5000, 16
    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )

    def loss(function, *arguments):
        return sum(jnp.sum(x) for x in function(*arguments))

    def program(function):
        return jax.jit(jax.value_and_grad(functools.partial(loss, function), argnums=(0, 1)))

    chunked = functools.partial(token_log_probs, chunk_size=256)
    assert largest(jax.make_jaxpr(program(plain))(*shapes).jaxpr) >= tokens * vocabulary
    assert largest(jax.make_jaxpr(program(chunked))(*shapes).jaxpr) <= 256 * vocabulary
    memory = program(chunked).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 4 * 256 * vocabulary


def test_bfloat16_adds_up_in_float32():
    """The gradient of an unembedding that 512 tokens share, all pushing the same way."""
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(np.abs(rng.normal(size=(512, D))), jnp.bfloat16)
    unembedding = jnp.asarray(rng.normal(size=(V, D)), jnp.bfloat16)
    targets = np.zeros(512, int)

    def gradient(hidden, unembedding):
        return jax.grad(
            lambda w: jnp.sum(token_log_probs(hidden, w, targets, chunk_size=8).log_probs)
        )(unembedding)

    ours = gradient(hidden, unembedding)
    exact = gradient(hidden.astype(jnp.float32), unembedding.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    # Of each term 8 bits, rounded either way. A sum in bfloat16 would stop growing at 256 terms.
    error = np.abs(ours.astype(jnp.float32) - exact)
    assert error.max() < 2**-8 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": np.zeros((2, 5))}, TypeError, "targets to be integers, got float"),
        ({"targets": np.zeros(5, int)}, ValueError, r"shape \[2, 5\] of the states.* got \[5\]"),
        ({"unembedding": np.zeros((V, D + 1))}, ValueError, r"the same D, got .* \[9, 7\]"),
        ({"unembedding": np.zeros(D)}, ValueError, r"unembedding \[V, D\]"),
        ({"chunk_size": 0}, ValueError, "chunk_size to be a positive integer, got 0"),
        ({"temperature": 0.0}, ValueError, "positive temperature, got 0.0"),
        ({"temperature": float("nan")}, ValueError, "positive temperature, got nan"),
        (
            {"hidden": np.zeros((0, D), np.float32), "targets": np.zeros(0, int)},
            ValueError,
            "at least one, got",
        ),
    ],
)
def test_refuses(changes, error, message):
    hidden, unembedding, targets = make_inputs()
    inputs = {"hidden": hidden, "unembedding": unembedding, "targets": targets, **changes}
    with pytest.raises(error, match=message):
        token_log_probs(**inputs)


def make_model(**fields):
    config = TransformerConfig(
        vocab_size=V, context_length=12, hidden=8, layers=2, heads=2, kv_heads=1, mlp=6, **fields
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    model.embedding[...] *= 30
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_completion_log_probs(tied):
    """Values and gradients of each prompt with each completion in a plain forward pass."""
    rng = np.random.default_rng(3)
    model = make_model(tied_embeddings=tied)
    prompt_mask = np.array([[False, True, True], [True, True, True]])
    prompts = Prompts(rng.integers(0, V, (2, 3)), prompt_mask)
    tokens = rng.integers(0, V, (2, 2, 4))
    mask = np.arange(4) < np.array([[4, 2], [1, 3]])[..., None]
    tokens[~mask] = -7  # Must not matter.
    weights = rng.normal(size=(2, *mask.shape))

    def ours(model):
        results = completion_log_probs(model, prompts, tokens, mask, temperature=0.8)
        return sum(jnp.sum(w * x) for w, x in zip(weights, results, strict=True)), results

    def theirs(model):
        whole = np.concatenate([np.repeat(prompts.tokens, 2, axis=0), tokens.reshape(4, 4)], axis=1)
        kept = np.concatenate([np.repeat(prompt_mask, 2, axis=0), mask.reshape(4, 4)], axis=1)
        # All prompts end at their third token, so the predicting states stand in a row.
        states = model.hidden_states(whole, kept)[:, 2:-1].reshape(2, 2, 4, -1)
        results = plain(states, model.unembedding(), np.where(mask, tokens, 0), 0.8)
        return sum(jnp.sum(w * x * mask) for w, x in zip(weights, results, strict=True)), results

    ((value, results), gradients), ((expected, plain_results), plain_gradients) = (
        nnx.jit(nnx.value_and_grad(f, has_aux=True))(model) for f in (ours, theirs)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for x, y in zip(results, plain_results, strict=True):
        np.testing.assert_allclose(x[mask], y[mask], rtol=1e-4, atol=1e-5)
        assert np.array_equal(x[~mask], np.zeros((~mask).sum()))
    for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(plain_gradients), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())
