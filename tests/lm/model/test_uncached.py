"""A module that knows nothing of this library, sampled from, scored and trained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maxpo import lm, training
from maxpo.lm.model.generation import generate
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs, token_log_probs
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.model.uncached import Uncached

V, D, EOS = 5, 8, 3


class Averages(nnx.Module):
    """The mean of the states of all tokens so far decides the next one."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.out = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, tokens, mask):
        states = jnp.cumsum(self.embed(tokens) * mask[..., None], axis=1)
        counts = jnp.maximum(jnp.cumsum(mask, axis=1), 1)[..., None]
        return self.out(jnp.tanh(states / counts))


def make_policy(seed=0):
    module = Averages(nnx.Rngs(seed))
    module.embed.embedding[...] = jax.random.normal(jax.random.key(seed), (V, D))
    return Uncached(module, vocab_size=V, context_length=16)


def pad(rows, side, length=4):
    tokens, mask = np.full((len(rows), length), 4), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        tokens[number, place], mask[number, place] = row, True
    return Prompts(tokens, mask)


def by_hand(policy, prompt, completion):
    """Log-probabilities of a completion, token by token, in NumPy."""
    embedding = np.asarray(policy.module.embed.embedding[...], np.float64)
    kernel, bias = (np.asarray(policy.module.out.kernel[...]), np.asarray(policy.module.out.bias))
    found, past = [], list(prompt)
    for token in completion:
        logits = np.tanh(embedding[past].mean(axis=0)) @ kernel + bias
        found.append(logits[token] - np.log(np.sum(np.exp(logits))))
        past.append(token)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_log_probabilities_of_samples_are_those_of_the_definition(side):
    policy, rows = make_policy(), [[1, 2, 0], [2], [0, 1, 1, 2]]
    prompts = pad(rows, side)
    found = generate(
        policy, prompts, group_size=6, max_new_tokens=5, eos_id=EOS, key=jax.random.key(1)
    )
    scored = completion_log_probs(policy, prompts, found.tokens, found.mask)
    np.testing.assert_allclose(scored.log_probs, found.log_probs, rtol=1e-5, atol=1e-6)
    lengths = np.asarray(found.mask.sum(axis=-1))
    assert lengths.min() < 5 == lengths.max()
    for p, row in enumerate(rows):
        for n in range(6):
            tokens = np.asarray(found.tokens[p, n, : lengths[p, n]])
            np.testing.assert_allclose(
                found.log_probs[p, n, : lengths[p, n]], by_hand(policy, row, tokens), rtol=1e-4
            )


def test_a_transformer_without_its_cache_is_the_transformer():
    model, _ = lm.new("nano", lm.CharTokenizer("abc"), context_length=16, layers=2, hidden=16)
    policy = Uncached(model, vocab_size=5, context_length=16)
    prompts = pad([[2, 3], [4]], "left")
    tokens = jax.random.randint(jax.random.key(0), (2, 3, 4), 0, 5)
    mask = np.arange(4) < np.array([[4, 2, 1], [3, 4, 4]])[..., None]
    score = nnx.jit(partial(completion_log_probs, temperature=0.7))
    with_cache, without = (score(each, prompts, tokens, mask) for each in (model, policy))
    for one, other in zip(with_cache, without, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    drawn = partial(
        generate, prompts=prompts, group_size=4, max_new_tokens=4, eos_id=1, key=jax.random.key(2)
    )
    np.testing.assert_array_equal(drawn(model).tokens, drawn(policy).tokens)


def test_logits_that_are_there_are_scored_as_those_that_are_not():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    matrix = jnp.asarray(rng.normal(size=(V, 4)), jnp.float32)
    targets = rng.integers(0, V, (2, 3))
    chunked = token_log_probs(hidden, matrix, targets, temperature=0.5)

    class Given:
        def completion_logits(self, prompts, tokens, mask):
            return (hidden @ matrix.T)[:, None]

    mask = np.ones((2, 1, 3), bool)
    direct = completion_log_probs(Given(), None, targets[:, None], mask, temperature=0.5)
    for one, other in zip(chunked, direct, strict=True):
        np.testing.assert_allclose(one, other[:, 0], rtol=1e-5, atol=1e-5)


def test_a_module_of_ten_lines_learns_what_it_is_rewarded_for(tmp_path):
    tokenizer = lm.CharTokenizer("abc")  # 5 tokens
    problems = [lm.Problem(prompt=letter, answer=letter) for letter in "abc"]
    result = lm.train(
        make_policy(),
        tokenizer,
        problems,
        reward=lambda problem, text: float(text[:1] == problem.answer),
        method="maxpo:k=2",
        group_size=8,
        prompts=3,
        steps=40,
        max_new_tokens=2,
        samples=32,
        optimizer=optax.adam(3e-2),
        workdir=tmp_path / "run",
    )
    before, after = (result.curve[name].value[0] for name in ("before", "after"))
    # 96 samples: a standard error of at most 0.05.
    assert after > before + 5 * 0.07
    assert isinstance(result.policy.module, Averages)


def test_mistakes_are_named():
    module = Averages(nnx.Rngs(0))
    with pytest.raises(ValueError, match="vocab_size: expected at least 1, got 0"):
        Uncached(module, vocab_size=0, context_length=4)
    policy = Uncached(module, vocab_size=V, context_length=6)
    with pytest.raises(ValueError, match=r"context_length: expected at least 4 \+ 3 for"):
        generate(
            policy,
            pad([[1]], "left"),
            group_size=2,
            max_new_tokens=3,
            eos_id=EOS,
            key=jax.random.key(0),
        )
    assert isinstance(training.init_state(nnx.state(policy), optax.sgd(1.0)).params, nnx.State)
    assert Transformer.rules
