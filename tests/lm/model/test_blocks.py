"""Sampling in blocks draws what a single loop draws, and pays for less."""

import blocks_child
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simulated_devices
from flax import nnx
from memory import VOCABULARY, WIDTH, Memory

from maxpo.lm.model import _blocks, _rows, generation
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.generation import generate, is_one_block
from maxpo.lm.model.policy import NO_LENGTH, WithGrowingCache
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs
from maxpo.lm.model.transformer import Transformer

EOS, PAD = 3, 4
P, N, T = 3, 6, 13
PROMPTS = Prompts(
    jnp.array([[1, 2, 0], [2, 2, 1], [0, 1, 5]]), jnp.ones((3, 3), bool).at[0, 0].set(False)
)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK", 4)
    monkeypatch.setattr(_rows, "_SAMPLE_COST", 4)


SETTINGS = {"group_size": N, "max_new_tokens": T, "eos_id": EOS, "pad_id": PAD}


def single_loop(policy, prompts=PROMPTS, key=0, **settings):
    """Inside `jax.jit` there is no other."""
    graph, state = nnx.split(policy)

    @jax.jit
    def run(state, key):
        return generate(nnx.merge(graph, state), prompts, **SETTINGS | settings, key=key)

    return run(state, jax.random.key(key))


def in_blocks(policy, prompts=PROMPTS, key=0, **settings):
    return generate(policy, prompts, **SETTINGS | settings, key=jax.random.key(key))


def assert_same(found, expected):
    lengths = expected.mask.sum(axis=-1)
    assert lengths.min() < 5 < 9 < lengths.max()  # Or there would be nothing to move.
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 16, "temperature": 1.5, "top_k": 5, "top_p": 0.95},
        {"group_size": 16, "temperature": 0.5, "eos_id": (EOS, 0), "pad_id": 0},
    ],
    ids=str,
)
def test_the_same_completions(settings):
    assert_same(in_blocks(Memory(), **settings), single_loop(Memory(), **settings))


def test_the_same_completions_in_strict_modes():
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        assert_same(in_blocks(Memory()), single_loop(Memory()))


def test_greedy_completions_are_the_same():
    """Two prompts end early, one never does: all samples of a group end together."""
    found, expected = (f(Memory(), temperature=0) for f in (in_blocks, single_loop))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_log_probabilities_of_a_transformer_are_those_of_a_teacher_forced_pass():
    config = TransformerConfig(
        VOCABULARY, context_length=24, hidden=8, layers=1, heads=4, kv_heads=2, mlp=8
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    model.embedding[...] = 0.3 * jax.random.normal(jax.random.key(0), (VOCABULARY, 8), jnp.float32)
    prompts = Prompts(np.asarray(PROMPTS.tokens), np.asarray(PROMPTS.mask))
    drawn = in_blocks(model, prompts, max_new_tokens=7)
    lengths = drawn.mask.sum(axis=-1)
    assert lengths.min() < 5 < 6 < lengths.max()
    forced = nnx.jit(completion_log_probs)(model, prompts, drawn.tokens, drawn.mask)
    np.testing.assert_allclose(drawn.log_probs, forced.log_probs, rtol=1e-4, atol=1e-5)


def test_a_step_pays_for_the_tokens_and_samples_that_there_are():
    """Of each step, the samples that it decodes and the room of their caches."""
    steps = {}

    class Seen(Memory):
        def decode(self, weights, tokens, step, prompt, own):
            shape = own["tokens"].shape
            jax.debug.callback(lambda step: steps.update({int(step): shape}), step)
            return super().decode(weights, tokens, step, prompt, own)

    drawn = jax.block_until_ready(in_blocks(Seen(), key=1))
    jax.effects_barrier()
    lengths = np.asarray(drawn.mask.sum(axis=-1)).ravel()
    # The token after the last of the longest sample is not drawn.
    assert sorted(steps) == list(range(lengths.max() - 1))
    for step, (rows, width, room) in steps.items():
        alive = np.sum(lengths > step + 1)
        assert alive <= rows * width
        assert room <= max(4, 2 * (step + 1)), (step, room)
    slots = [rows * width for rows, width, _ in steps.values()]
    assert slots[0] == P * N
    assert slots == sorted(slots, reverse=True)
    assert slots[-1] <= P * N // 2


def test_nothing_of_the_caller_is_donated_and_nothing_compiled_again():
    class Given(Memory):
        """Puts an array of its own into the cache, and the prompts into theirs."""

        def __init__(self):
            super().__init__()
            self.state = nnx.Variable(jnp.ones((P, N, WIDTH)))

        def prefill(self, prompts):
            prompt, hidden = super().prefill(prompts)
            return {"sum": prompt, "tokens": prompts.tokens}, hidden

        def empty_cache(self, prompts, group_size, length):
            return super().empty_cache(prompts, group_size, length) | {"own": self.state[...]}

        def cache_length_axes(self):
            return super().cache_length_axes() | {"own": NO_LENGTH}

        def decode(self, weights, tokens, step, prompt, own):
            hidden, written = super().decode(weights, tokens, step, prompt["sum"], own)
            return hidden, written | {"own": own["own"]}

    policy = Given()
    first = in_blocks(policy, max_new_tokens=6)
    programs = _blocks._first._cache_size(), _blocks._further._cache_size()
    second = in_blocks(policy, max_new_tokens=6)
    assert (_blocks._first._cache_size(), _blocks._further._cache_size()) == programs
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert np.asarray(policy.state[...]).all()
    assert np.asarray(PROMPTS.tokens).any()


def test_a_policy_whose_cache_does_not_grow_is_sampled_by_a_single_loop(monkeypatch):
    monkeypatch.delattr(Memory, "cache_length_axes")
    assert not isinstance(Memory(), WithGrowingCache)
    monkeypatch.setattr(generation, "Blocks", None)
    assert_same(in_blocks(Memory()), single_loop(Memory()))


def test_constants_of_a_compiled_function_are_sampled_by_a_single_loop(monkeypatch):
    monkeypatch.setattr(generation, "Blocks", None)
    found = jax.jit(lambda: in_blocks(Memory(), temperature=jnp.float32(1)))()
    np.testing.assert_array_equal(found.tokens, single_loop(Memory()).tokens)


def test_the_first_block_is_one_of_few_that_cover_all_tokens(monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK", 64)
    assert _blocks.rooms(64) == [63]
    assert _blocks.rooms(65) == [64]
    assert _blocks.rooms(1) == [1]
    assert _blocks.rooms(300) == [64, 128, 192, 256, 299]
    assert [is_one_block(length) for length in (1, 65, 66)] == [True, True, False]
    for length in (66, 1000, 2048, 32_768):
        found = _blocks.rooms(length)
        assert found[-1] == length - 1
        growth = np.divide(found[1:], found[:-1])
        assert (growth > 1).all()
        assert (growth[1:] <= 1.5).all()
    assert len(found) < 20


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_completions_on_a_mesh(processes):
    """Four simulated devices, where samples stay in their shards; no process knows all of them."""
    devices = 4 // processes
    simulated_devices.outputs(blocks_child.__file__, devices=devices, processes=processes)
