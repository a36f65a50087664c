"""Sampling against exact probabilities, and what it says of them against the whole forward pass."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from maxpo.lm.model import generation
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.generation import generate, sample, truncate
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs
from maxpo.lm.model.transformer import Transformer

score = nnx.jit(completion_log_probs)

V, EOS, PAD = 5, 3, 4
PROMPTS = [[1, 2, 0, 2], [2], [0, 1]]


def make_model(seed=0, **fields):
    """A tiny model whose distributions are neither uniform nor certain."""
    shape = {"hidden": 8, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 12} | fields
    config = TransformerConfig(vocab_size=V, context_length=24, **shape)
    model = Transformer(config, rngs=nnx.Rngs(seed))
    model.embedding[...] = 0.3 * jax.random.normal(jax.random.key(seed), (V, 8), jnp.float32)
    return model


def pad(rows, length, side):
    tokens, mask = np.full((len(rows), length), PAD), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        tokens[number, place], mask[number, place] = row, True
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


@nnx.jit
def forward(model, tokens, mask):
    return model(tokens, mask)


def next_logits(model, sequence):
    """Logits `[V]` after a sequence by the whole forward pass, without a cache."""
    tokens, mask = pad([sequence], 24, "right")
    return np.asarray(forward(model, tokens, mask)[0, len(sequence) - 1], np.float64)


def distribution(logits, temperature=1.0, top_k=None, top_p=None):
    """Probabilities `[V]` that are drawn from, token by token in the order of their chance."""
    p = scipy.special.softmax(logits / temperature)
    order = np.argsort(-p)
    kept = order[: top_k or V]
    if top_p is not None:
        among = p[kept] / p[kept].sum()
        kept = kept[: 1 + np.searchsorted(np.cumsum(among), top_p)]
    result = np.zeros(V)
    result[kept] = p[kept] / p[kept].sum()
    return result


def complete(row, mask):
    return tuple(np.asarray(row)[np.asarray(mask)].tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 3},
        {"top_p": 0.7},
        {"temperature": 1.3, "top_k": 4, "top_p": 0.8},
    ],
    ids=str,
)
def test_frequencies_are_the_exact_probabilities(settings):
    """Chi-square of all completions of up to three tokens; one in ten thousand fails by chance."""
    model, T, N = make_model(), 3, 4000
    prompts = PROMPTS[:2]
    drawn = generate(
        model,
        pad(prompts, 4, "left"),
        group_size=N,
        max_new_tokens=T,
        eos_id=EOS,
        pad_id=PAD,
        key=jax.random.key(1),
        **settings,
    )
    for number, prompt in enumerate(prompts):
        expected = {(): 1.0}
        for _ in range(T):
            grown = {}
            for begun, chance in expected.items():
                if begun and begun[-1] == EOS:
                    grown[begun] = chance
                    continue
                p = distribution(next_logits(model, [*prompt, *begun]), **settings)
                grown |= {(*begun, token): chance * p[token] for token in np.flatnonzero(p)}
            expected = grown
        found = dict.fromkeys(expected, 0)
        for row, mask in zip(drawn.tokens[number], drawn.mask[number], strict=True):
            found[complete(row, mask)] += 1  # A KeyError would be an impossible completion.
        chances, counts = (np.array(list(x.values())) for x in (expected, found))
        assert np.isclose(chances.sum(), 1)
        rare = chances * N < 5
        chances = np.append(chances[~rare], chances[rare].sum())
        counts = np.append(counts[~rare], counts[rare].sum())
        some = chances > 0
        assert some.sum() > 3
        p_value = scipy.stats.chisquare(counts[some], N * chances[some]).pvalue
        assert p_value > 1e-4
        # The test would see another temperature.
        wrong = scipy.stats.chisquare(counts[some], np.full(some.sum(), N / some.sum())).pvalue
        assert wrong < 1e-10


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fields", [{}, {"tied_embeddings": False, "qk_norm": True}], ids=str)
def test_greedy_is_the_argmax_of_the_whole_forward_pass(fields, side):
    model = make_model(2, **fields)
    found = generate(
        model,
        pad(PROMPTS, 6, side),
        group_size=2,
        max_new_tokens=7,
        temperature=0,
        eos_id=EOS,
        pad_id=PAD,
        key=jax.random.key(0),
    )
    for number, prompt in enumerate(PROMPTS):
        sequence, log_probs = list(prompt), []
        while len(sequence) < len(prompt) + 7 and (sequence[len(prompt) :] or [None])[-1] != EOS:
            logits = next_logits(model, sequence)
            sequence.append(int(np.argmax(logits)))
            log_probs.append(scipy.special.log_softmax(logits)[sequence[-1]])
        for sampled in range(2):
            mask = found.mask[number, sampled]
            assert list(complete(found.tokens[number, sampled], mask)) == sequence[len(prompt) :]
            np.testing.assert_allclose(
                found.log_probs[number, sampled][mask], log_probs, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_are_those_of_a_teacher_forced_pass(dtype):
    model = make_model(3, dtype=dtype, attention_bias=True)
    prompts = pad(PROMPTS, 5, "left")
    drawn = generate(
        model,
        prompts,
        group_size=16,
        max_new_tokens=9,
        temperature=0.8,
        eos_id=EOS,
        pad_id=PAD,
        key=jax.random.key(5),
    )
    forced = score(model, prompts, drawn.tokens, drawn.mask, temperature=0.8)
    difference = np.abs(drawn.log_probs - forced.log_probs)
    assert np.abs(drawn.log_probs).max() > 1
    # bfloat16 keeps 8 bits of the states: its logits differ by the order of their sums.
    assert difference.max() < (1e-4 if dtype == "float32" else 0.15)


def test_padding_and_neighbours_change_no_log_probability():
    """The same completions, scored in batches that differ in nothing else."""
    model = make_model(4)
    drawn = generate(
        model,
        pad(PROMPTS, 4, "left"),
        group_size=4,
        max_new_tokens=6,
        eos_id=EOS,
        key=jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    for length, side in ((4, "right"), (11, "left"), (11, "right")):
        prompts = pad(PROMPTS, length, side)
        noise = rng.integers(0, V, prompts.tokens.shape)
        prompts = Prompts(jnp.where(prompts.mask, prompts.tokens, noise), prompts.mask)
        again = score(model, prompts, drawn.tokens, drawn.mask)
        np.testing.assert_allclose(again.log_probs, drawn.log_probs, rtol=1e-4, atol=1e-5)
    for number, prompt in enumerate(PROMPTS):
        alone = score(
            model,
            pad([prompt], len(prompt), "left"),
            drawn.tokens[number : number + 1, :1],
            drawn.mask[number : number + 1, :1],
        )
        np.testing.assert_allclose(
            alone.log_probs[0, 0], drawn.log_probs[number, 0], rtol=1e-4, atol=1e-5
        )


def test_what_stands_behind_the_end():
    drawn = generate(
        make_model(),
        pad(PROMPTS, 4, "left"),
        group_size=64,
        max_new_tokens=8,
        eos_id=EOS,
        pad_id=PAD,
        key=jax.random.key(0),
    )
    lengths = np.asarray(drawn.mask.sum(axis=-1))
    assert lengths.min() == 1
    assert lengths.max() == 8
    np.testing.assert_array_equal(drawn.mask, np.arange(8) < lengths[..., None])
    assert (drawn.tokens[~drawn.mask] == PAD).all()
    assert (drawn.log_probs[~drawn.mask] == 0).all()
    assert (drawn.log_probs[drawn.mask] < 0).all()
    ends = np.take_along_axis(np.asarray(drawn.tokens), lengths[..., None] - 1, axis=-1)[..., 0]
    assert ((ends == EOS) | (lengths == 8)).all()
    inner = drawn.mask & (np.arange(8) < lengths[..., None] - 1)
    assert (drawn.tokens[inner] != EOS).all()


def test_the_loop_ends_with_the_longest_sample(monkeypatch):
    steps = []
    decode = Transformer.decode

    def counted(self, layers, tokens, step, prompt, own):
        jax.debug.callback(lambda step: steps.append(int(step)), step)
        return decode(self, layers, tokens, step, prompt, own)

    monkeypatch.setattr(Transformer, "decode", counted)
    drawn = generate(
        make_model(),
        pad(PROMPTS[:1], 4, "left"),
        group_size=3,
        max_new_tokens=19,
        temperature=1.0,
        eos_id=EOS,
        key=jax.random.key(0),
    )
    jax.block_until_ready(drawn)
    jax.effects_barrier()
    longest = int(drawn.mask.sum(axis=-1).max())
    assert 1 < longest < 19
    assert sorted(steps) == list(range(longest - 1))


def test_the_prompt_runs_once_for_its_group(monkeypatch):
    shapes = []
    prefill = Transformer.prefill

    def seen(self, prompts):
        shapes.append(prompts.tokens.shape)
        return prefill(self, prompts)

    monkeypatch.setattr(Transformer, "prefill", seen)
    generate(
        make_model(),
        pad(PROMPTS, 4, "left"),
        group_size=7,
        max_new_tokens=3,
        eos_id=EOS,
        key=jax.random.key(0),
    )
    assert shapes == [(3, 4)]


def draw_with_ends(ends, **settings):
    """Arrays `[120, 6]` of all samples."""
    drawn = generate(
        make_model(layers=1),
        pad(PROMPTS, 4, "left"),
        group_size=40,
        max_new_tokens=6,
        eos_id=ends,
        key=jax.random.key(3),
        **settings,
    )
    return [np.reshape(array, (120, 6)) for array in drawn]


def test_the_first_of_several_end_tokens_ends_a_completion():
    """Until then a sample is what it is with one of them: its numbers are its own."""
    one = draw_with_ends(EOS, pad_id=PAD)
    for pad_id in (PAD, 2):  # Padding may be one of the ends.
        several = draw_with_ends([EOS, np.int64(2)], pad_id=pad_id)
        is_cut = []
        for row, (tokens, log_probs, mask) in enumerate(zip(*one, strict=True)):
            others = np.flatnonzero(mask & (tokens == 2))
            is_cut.append(len(others) > 0)
            kept = mask & (np.arange(6) <= (others[0] if is_cut[-1] else 6))
            found = [array[row] for array in several]
            np.testing.assert_array_equal(found[0], np.where(kept, tokens, pad_id))
            np.testing.assert_allclose(found[1], np.where(kept, log_probs, 0), rtol=1e-6)
            np.testing.assert_array_equal(found[2], kept)
        assert 0 < sum(is_cut) < 120


def test_end_tokens_that_are_never_drawn_change_nothing():
    tokens, log_probs, mask = draw_with_ends(EOS, temperature=0)
    never = sorted(set(range(V)) - set(tokens[mask].tolist()))
    assert never
    found = draw_with_ends((*never, EOS), temperature=0)
    for array, expected in zip(found, (tokens, log_probs, mask), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_new_values_compile_nothing_anew():
    model = make_model()

    def call(number):
        nnx.update(model, jax.tree.map(lambda x: 1.01 * x, nnx.state(model)))
        return generate(
            model,
            pad(PROMPTS, 4, "left"),
            group_size=2,
            max_new_tokens=2,
            temperature=1.0 + number,
            top_p=0.5 + 0.1 * number,
            eos_id=EOS,
            key=jax.random.key(number),
        )

    call(0)
    before = generation._generate._cache_size()
    call(1)
    call(2)
    assert generation._generate._cache_size() == before


def test_one_key_one_result():
    def tokens(seed):
        return generate(
            make_model(),
            pad(PROMPTS, 4, "left"),
            group_size=8,
            max_new_tokens=5,
            eos_id=EOS,
            key=jax.random.key(seed),
        ).tokens

    np.testing.assert_array_equal(tokens(0), tokens(0))
    assert (tokens(0) != tokens(1)).any()
    assert (tokens(0)[0, :1] != tokens(0)[0, 1:]).any()  # Nor are the samples of a group copies.


def test_an_impossible_token_is_never_drawn():
    logits = jnp.array([-jnp.inf, 0.0, -jnp.inf, 1.0, -jnp.inf])
    uniform = jnp.array([0.0, 1e-7, 0.2, 0.3, 1 - 2**-24])
    assert sample(jnp.broadcast_to(logits, (5, 5)), uniform).tolist() == [1, 1, 1, 3, 3]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, [0, 1, 2, 3, 4]),
        (1, None, [2]),
        (2, None, [1, 2, 4]),  # Equals of the last one stay.
        (None, 1e-6, [2]),
        (None, 0.5, [2]),
        (None, 0.51, [1, 2, 4]),
        (3, 0.99, [1, 2, 4]),
    ],
)
def test_truncation(top_k, top_p, kept):
    logits = jnp.log(jnp.float32([0.06, 0.2, 0.5, 0.04, 0.2]))
    result = truncate(logits, top_k=top_k, top_p=top_p)
    assert np.flatnonzero(np.isfinite(result)).tolist() == kept
    np.testing.assert_array_equal(result[jnp.array(kept)], logits[jnp.array(kept)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 0}, "expected group_size to be an integer at least 1, got 0"),
        ({"max_new_tokens": 2.0}, "expected max_new_tokens to be an integer at least 1, got 2.0"),
        ({"max_new_tokens": 21}, r"context_length = 24 tokens .* got 4 \+ 21"),
        ({"eos_id": V}, "expected eos_id to be an integer from 0 to 4, got 5"),
        ({"eos_id": (EOS, V)}, "expected eos_id to be an integer from 0 to 4, got 5"),
        ({"eos_id": ()}, "expected at least one eos_id, got none"),
        ({"pad_id": -1}, "expected pad_id to be an integer from 0 to 4, got -1"),
        ({"top_k": 0}, "expected top_k to be an integer at least 1, got 0"),
        ({"top_p": 0.0}, "expected 0 < top_p <= 1, got 0.0"),
        ({"top_p": 1.5}, "expected 0 < top_p <= 1, got 1.5"),
        ({"temperature": -1.0}, "expected a temperature of at least 0, got -1.0"),
        ({"temperature": math.nan}, "expected a temperature of at least 0, got nan"),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    given = {"group_size": 2, "max_new_tokens": 3, "eos_id": EOS} | settings
    with pytest.raises(ValueError, match=message):
        generate(make_model(), pad(PROMPTS, 4, "left"), key=jax.random.key(0), **given)


def test_an_empty_prompt_is_named():
    prompts = pad([[1], []], 2, "left")
    with pytest.raises(ValueError, match="at least one token in every prompt, got none in 1"):
        generate(
            make_model(),
            prompts,
            group_size=1,
            max_new_tokens=1,
            eos_id=EOS,
            key=jax.random.key(0),
        )


def test_all_completions_are_found_where_there_are_few():
    """Exhaustive: with T = 2 every pair of tokens that can be is drawn, and nothing else."""
    drawn = generate(
        make_model(),
        pad(PROMPTS[1:2], 1, "left"),
        group_size=5000,
        max_new_tokens=2,
        temperature=3.0,
        eos_id=EOS,
        pad_id=PAD,
        key=jax.random.key(0),
    )
    found = {complete(*row) for row in zip(drawn.tokens[0], drawn.mask[0], strict=True)}
    pairs = set(itertools.product(range(V), range(V)))
    assert found == {(EOS,)} | {pair for pair in pairs if pair[0] != EOS}
