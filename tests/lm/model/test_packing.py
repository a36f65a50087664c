"""Completions without their padding, beside the same with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maxpo.lm.model import _packing
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs
from maxpo.lm.model.transformer import Transformer

P, N, S, T, VOCABULARY = 2, 3, 4, 40, 11
# An empty sample, one of a single token, a full one, and two in one block.
LENGTHS = np.array([[0, 1, 40], [2, 17, 33]])


def make_model(**fields):
    shape = TransformerConfig(
        vocab_size=VOCABULARY,
        context_length=S + T,
        layers=2,
        **{"hidden": 16, "heads": 4, "kv_heads": 2, "mlp": 12, "qk_norm": True, **fields},
    )
    return Transformer(shape, rngs=nnx.Rngs(0))


def make_batch(lengths=LENGTHS, length=T):
    rng = np.random.default_rng(0)
    prompts = Prompts(rng.integers(0, VOCABULARY, (P, S)), np.ones((P, S), bool))
    prompts.mask[0, :2] = prompts.mask[1, 3:] = False
    tokens = rng.integers(-9, 99, (P, N, length))  # Padding is no token at all.
    mask = np.arange(length) < lengths[..., None]
    tokens[mask] = rng.integers(0, VOCABULARY, mask.sum())
    return prompts, tokens, mask


def value_and_gradient(model, batch, room):
    """Log-probabilities and entropies, and the gradient of a random form of them."""
    graph, params = nnx.split(model)
    weights = np.random.default_rng(1).normal(size=(2, *batch[1].shape)).astype(np.float32)

    @partial(jax.value_and_grad, has_aux=True)
    def form(params):
        found = completion_log_probs(nnx.merge(graph, params), *batch, temperature=0.7, room=room)
        return sum(jnp.sum(w * x) for w, x in zip(weights, found, strict=True)), found

    (_, found), gradient = jax.jit(form)(params)
    return found, gradient


def check(found, expected, tolerance):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("fields", "extra", "chunk", "tolerance"),
    [
        ({}, 0, 32, 5e-5),
        # Eight bits of mantissa, rounded at other places.
        ({"dtype": "bfloat16", "remat": True}, 29, 64, 0.05),
    ],
    ids=["float32", "bfloat16"],
)
def test_results_and_gradients_are_those_with_padding(monkeypatch, fields, extra, chunk, tolerance):
    """In chunks of two and of four blocks: of samples that are up to three blocks long."""
    monkeypatch.setattr(_packing, "CHUNK_TOKENS", chunk)
    model, batch = make_model(**fields), make_batch()
    room = int(np.maximum(LENGTHS - 1, 0).sum()) + extra
    found, gradient = value_and_gradient(model, batch, room)
    expected, slope = value_and_gradient(model, batch, None)
    assert not np.asarray(found.log_probs)[~batch[2]].any()
    check(found, expected, tolerance)
    check(gradient, slope, tolerance)
