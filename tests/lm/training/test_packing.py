"""Packed updates beside those that compute for padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigrams import Bigrams
from flax import nnx

from maxpo import lm, training
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training import packing, update
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.runs import load_config
from maxpo.studies.speed.lengths import log_normal_lengths


def make_rl(**changes):
    rl = load_config("configs/lm.py").rl
    rl.update(packing=True, loss="clipped_ratio", **changes)
    return rl


def counts_of(lengths, limit):
    return np.arange(limit) < lengths[..., None]


def needed_in(cell, lengths):
    return np.maximum(lengths[cell] - 1, 0).sum()


@pytest.mark.parametrize("whole", [1, 7, 1000, 524032])
def test_rooms_are_few_and_near(whole):
    rooms = {
        packing.room_for(tokens, whole) for tokens in range(0, whole + 1, max(1, whole // 999))
    }
    assert len(rooms) <= 16
    assert max(rooms) == whole
    for tokens in range(max(1, whole // 60), whole, max(1, whole // 999)):
        room = packing.room_for(tokens, whole)
        assert tokens <= room <= 1.3 * tokens + 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("prompts", "limit"), [(16, 64), (16, 2048), (8, 512)])
def test_at_most_a_quarter_is_padding_at_log_normal_lengths(prompts, limit, seed):
    lengths = log_normal_lengths(np.random.default_rng(seed), prompts, 16, limit)
    counts, key = counts_of(lengths, limit), jax.random.key(0)
    found = packing.make_packing(make_rl(), key, counts)
    assert found.padding <= 0.25
    positions = prompts * 16 * (limit - 1)
    assert found.padding == pytest.approx(1 - (lengths - 1).sum() / found.room)
    rl = make_rl()
    rl.packing = False
    without = packing.make_packing(rl, key, counts)
    assert without == (None, None, pytest.approx(1 - (lengths - 1).sum() / positions))
    assert without.padding > 0.7


def test_every_part_of_a_batch_finds_room_and_no_group_is_lost():
    """Eight micro-batches of a minibatch, each on two devices: cells of two groups."""
    rl = make_rl(epochs=2, minibatches=2, micro_batches=4)
    lengths = log_normal_lengths(np.random.default_rng(0), 32, 4, 100)
    lengths[3] = 0
    mesh = jax.sharding.AbstractMesh((2, 1), ("data", "model"))
    with jax.sharding.use_abstract_mesh(mesh):
        found = packing.make_packing(rl, jax.random.key(1), counts_of(lengths, 100))
    assert found.order.shape == (4, 16)
    plain = np.asarray(packing.shuffled(jax.random.key(1), 32, epochs=2, minibatches=2))
    for ours, theirs in zip(found.order, plain, strict=True):
        assert sorted(ours) == sorted(theirs)
    cells = [needed_in(cell, lengths) for cell in found.order.reshape(-1, 2)]
    assert max(cells) <= found.room <= 1.3 * max(cells) + 1
    as_shuffled = [needed_in(cell, lengths) for cell in plain.reshape(-1, 2)]
    assert max(cells) < max(as_shuffled)
    assert found.padding == pytest.approx(1 - np.sum(cells) / (len(cells) * found.room))


P, N, S, T, VOCABULARY = 4, 2, 3, 20, 7


@pytest.fixture(scope="module")
def policy():
    shape = TransformerConfig(
        vocab_size=VOCABULARY,
        context_length=S + T,
        hidden=16,
        layers=1,
        heads=2,
        kv_heads=1,
        mlp=8,
    )
    return nnx.split(Transformer(shape, rngs=nnx.Rngs(0)))


def make_batch():
    """With a group and further samples that do not count, long ones among them."""
    rng = np.random.default_rng(0)
    lengths = np.array([[20, 3], [1, 7], [20, 19], [4, 0]])
    mask = counts_of(lengths, T)
    where = np.array([[True, True], [True, True], [False, False], [True, True]])
    where[0, 0] = False
    sampled_with = np.where(mask, rng.normal(-2, 0.3, (P, N, T)), 0).astype(np.float32)
    completions = Completions(rng.integers(0, VOCABULARY, (P, N, T)), sampled_with, mask)
    prompts = Prompts(rng.integers(0, VOCABULARY, (P, S)), np.ones((P, S), bool))
    rewards = rng.normal(size=(P, N)).astype(np.float32)
    return update.Batch(prompts, completions, rewards, where, where)


def advanced(policy, rl, batch, packed):
    """Parameters and metrics after the steps of an update, with a KL penalty to the start."""
    graph, params = policy
    key = jax.random.key(3)
    rl.packing = packed
    counts = batch.completions.mask & batch.where[..., None]
    found = packing.make_packing(rl, key, counts)
    order = None if found.order is None else found.order[: rl.minibatches].ravel()
    reference = update.make_reference(graph, rl)(
        params,
        batch.prompts,
        batch.completions._replace(mask=counts),
        order=order,
        room=found.room,
    )
    optimizer = partial(make_optimizer, rl, rules=None)
    advance = update.make_update(graph, rl, lambda rewards, *_: rewards, optimizer=optimizer)
    state = training.init_state(jax.tree.map(jnp.copy, params), optimizer(1.0))
    state, metrics, _ = advance(
        state,
        batch._replace(reference_log_probs=reference),
        key,
        step=0,
        learning_rate=0.01,
        order=found.order,
        room=found.room,
    )
    return found, reference, state.params, metrics


def test_the_update_is_the_same_to_rounding(policy):
    """Two epochs of two minibatches in two parts, each group in the minibatch it is in without."""
    rl = make_rl(epochs=2, minibatches=2, micro_batches=2, kl_coefficient=0.1)
    rl.update(entropy_coefficient=0.05, max_gradient_norm=1e3, optimizer="adamw")
    batch = make_batch()
    packed, *found = advanced(policy, rl, batch, True)
    _, *expected = advanced(policy, rl, batch, False)
    # The longest of what counts: the two samples of a group with 1 and 7 tokens.
    assert 6 <= packed.room < N * (T - 1) / 3
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_policy_that_cannot_pack_is_refused_before_any_work(tmp_path):
    tokenizer = lm.CharTokenizer.from_texts(["ab"])
    with pytest.raises(ValueError, match=r"packing: expected False for .* got True for Bigrams"):
        lm.train(
            Bigrams(rngs=nnx.Rngs(0)),
            tokenizer,
            [lm.Problem(prompt="a", answer="b")],
            reward=lambda problem, text: 0.0,
            packing=True,
            prompts=1,
            workdir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
