"""The compiled update against losses written out sample by sample."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigrams import VOCABULARY, Bigrams
from flax import nnx
from ml_collections import ConfigDict

from maxpo import training
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.sharding import RULES
from maxpo.lm.training import update
from maxpo.lm.training.optimizer import make_optimizer

P, N, T = 4, 3, 5
TEMPERATURE = 0.7


GRAPH, PARAMS = nnx.split(Bigrams(rngs=nnx.Rngs(0)))


def log_prob_table(params):
    logits = params["states"][...] @ params["output"][...].T / TEMPERATURE
    return jax.nn.log_softmax(logits)


def make_batch(reference=True):
    rng = np.random.default_rng(0)
    prompts = Prompts(rng.integers(0, VOCABULARY, (P, 2)), np.ones((P, 2), bool))
    tokens = rng.integers(0, VOCABULARY, (P, N, T))
    lengths = rng.integers(1, T + 1, (P, N))
    mask = np.arange(T) < lengths[..., None]
    where = rng.random((P, N)) < 0.7
    where[1] = False  # a group without any sample
    table = log_prob_table(PARAMS)
    last = np.broadcast_to(prompts.tokens[:, None, -1:], (P, N, 1))
    own = table[np.concatenate([last, tokens[..., :-1]], axis=-1), tokens]

    def elsewhere():
        return np.where(mask, own + rng.normal(0, 0.3, (P, N, T)), 0).astype(np.float32)

    completions = Completions(tokens, elsewhere(), mask)
    advantages = rng.normal(size=(P, N)).astype(np.float32)
    return update.Batch(
        prompts,
        completions,
        advantages,
        np.ones((P, N), bool),
        where,
        elsewhere() if reference else None,
        advantages,
    )


def make_update(settings):
    """The update whose advantages are the rewards, as (state, batch, rate, seed)."""
    advance = update.make_update(
        GRAPH,
        settings,
        lambda rewards, where, step, method, success_rate: rewards,
        optimizer=partial(make_optimizer, settings, rules=None),
    )

    def run(state, batch, rate, seed=0):
        key = jax.random.key(seed)
        state, metrics, advantages = advance(state, batch, key, step=0, learning_rate=rate)
        np.testing.assert_array_equal(advantages, batch.rewards)
        return state, metrics

    return run


def naive_loss(states, output, batch, settings):
    """The definitions, one sample after the other, in NumPy."""
    logits = states @ output.T / TEMPERATURE
    table = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    terms, penalties, lengths, entropies = [], [], [], []
    for p, n in itertools.product(range(P), range(N)):
        if not batch.where[p, n]:
            continue
        length = int(batch.completions.mask[p, n].sum())
        tokens = batch.completions.tokens[p, n, :length]
        before = np.append(batch.prompts.tokens[p, -1], tokens[:-1])
        own = table[before, tokens]
        sampled_with = batch.completions.log_probs[p, n, :length].astype(np.float64)
        reference = batch.reference_log_probs[p, n, :length].astype(np.float64)
        advantage = batch.advantages[p, n]
        entropies += list(-np.sum(np.exp(table[before]) * table[before], axis=-1))
        lengths.append(length)
        if settings.importance_level == "sequence":
            scale = length if settings.loss_aggregation == "sequence" else 1
            own, sampled_with, reference = (
                np.sum(x, keepdims=True) / scale for x in (own, sampled_with, reference)
            )
        if settings.loss == "score_function":
            objective = advantage * own
        else:
            ratio = np.exp(own - sampled_with)
            clipped = np.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
            objective = np.minimum(ratio * advantage, clipped * advantage)
        terms.append(-np.sum(objective))
        penalties.append(np.sum((own - reference) ** 2 / 2))
    if settings.importance_level == "sequence":
        loss = sum(terms) / len(terms)
    elif settings.loss_aggregation == "token":
        loss = sum(terms) / sum(lengths)
    elif settings.loss_aggregation == "sequence":
        loss = sum(x / length for x, length in zip(terms, lengths, strict=True)) / len(terms)
    else:
        loss = sum(terms) / settings.length / len(terms)
    loss += settings.kl_coefficient * sum(penalties) / len(penalties)
    return loss - settings.entropy_coefficient * sum(entropies) / len(entropies)


def naive_gradient(batch, settings):
    """Value and central differences of the naive loss at `PARAMS`."""
    arrays = {name: np.asarray(PARAMS[name][...], np.float64) for name in ("output", "states")}
    gradient = {name: np.zeros_like(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        for place in np.ndindex(array.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = array.copy()
                moved[place] += step
                sides.append(naive_loss(**{**arrays, name: moved}, batch=batch, settings=settings))
            gradient[name][place] = (sides[0] - sides[1]) / 2e-6
    return naive_loss(**arrays, batch=batch, settings=settings), gradient


def make_settings(**changes):
    settings = ConfigDict(
        {
            "loss": "score_function",
            "importance_level": "token",
            "loss_aggregation": "constant",
            "length": 1.0,
            "clip_low": 0.2,
            "clip_high": 0.3,
            "clip_dual": 0.0,
            "epochs": 1,
            "minibatches": 1,
            "micro_batches": 1,
            "kl_coefficient": 0.2,
            "kl_estimator": "k2",
            "entropy_coefficient": 0.05,
            "temperature": TEMPERATURE,
            "warmup_steps": 4,
            "max_gradient_norm": 0.5,
            "optimizer": "adamw",
            "b2": 0.95,
            "weight_decay": 0.1,
        }
    )
    settings.update(changes)
    return settings


@pytest.mark.parametrize(
    ("loss", "importance_level", "loss_aggregation", "length", "micro_batches"),
    [
        ("score_function", "token", "constant", 5.0, 1),
        ("score_function", "token", "constant", 5.0, 4),
        ("score_function", "token", "sequence", 1.0, 4),
        ("score_function", "token", "token", 1.0, 2),
        ("score_function", "sequence", "constant", 1.0, 4),
        ("clipped_ratio", "token", "token", 1.0, 1),
        ("clipped_ratio", "token", "token", 1.0, 4),
        ("clipped_ratio", "sequence", "sequence", 1.0, 2),
    ],
)
def test_the_gradient_is_that_of_the_definition_however_it_is_cut(
    loss, importance_level, loss_aggregation, length, micro_batches
):
    settings = make_settings(
        loss=loss,
        importance_level=importance_level,
        loss_aggregation=loss_aggregation,
        length=length,
    )
    batch = make_batch()
    value, expected = naive_gradient(batch, settings)
    found, metrics = update.accumulated_gradient(
        partial(update.loss_and_metrics, GRAPH, settings), PARAMS, batch, micro_batches
    )
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name][...], array, rtol=1e-3, atol=1e-5)


def test_metrics_are_those_of_the_whole_batch_however_it_is_cut():
    settings, batch = make_settings(loss="clipped_ratio"), make_batch()
    loss = partial(update.loss_and_metrics, GRAPH, settings)
    _, whole = update.accumulated_gradient(loss, PARAMS, batch, 1)
    _, cut = update.accumulated_gradient(loss, PARAMS, batch, 4)
    assert set(whole) == {
        "loss",
        "entropy",
        "kl_to_sampling_policy",
        "clip_fraction",
        "kl_to_reference",
    }
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, rtol=1e-5, err_msg=name)
    # Against the definition: tokens where the minimum takes the clipped branch.
    kept = batch.completions.mask & batch.where[..., None]
    table = log_prob_table(PARAMS)
    last = np.broadcast_to(batch.prompts.tokens[:, None, -1:], (P, N, 1))
    before = np.concatenate([last, batch.completions.tokens[..., :-1]], axis=-1)
    log_ratio = table[before, batch.completions.tokens] - batch.completions.log_probs
    up = batch.advantages[..., None] > 0
    stopped = np.where(up, log_ratio > np.log(1.3), log_ratio < np.log(0.8))
    np.testing.assert_allclose(whole["clip_fraction"], stopped[kept].mean(), rtol=1e-5)
    drift = np.exp(log_ratio) - 1 - log_ratio
    np.testing.assert_allclose(whole["kl_to_sampling_policy"], drift[kept].mean(), rtol=1e-4)


def test_an_update_is_a_clipped_adamw_step_with_a_warm_up():
    settings, batch = make_settings(micro_batches=2), make_batch()
    state = training.init_state(PARAMS, make_optimizer(settings, 0.0, rules=None))
    advance = make_update(settings)
    copy = jax.tree.map(jnp.copy, state)
    copy, metrics = advance(copy, batch, 0.01)

    _, gradient = naive_gradient(batch, settings)
    norm = np.sqrt(sum(np.sum(array**2) for array in gradient.values()))
    assert norm > settings.max_gradient_norm
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    # Adam's first step is the sign of the gradient, and the first rate a quarter of the last.
    for name, slope in gradient.items():
        before, after = PARAMS[name][...], copy.params[name][...]
        step = np.sign(slope) * (np.abs(slope) > 1e-4) + settings.weight_decay * before
        moved = np.where(np.abs(slope) > 1e-4, after - before, -0.0025 * step)
        np.testing.assert_allclose(moved, -0.0025 * step, rtol=1e-3, atol=2e-6)
    assert copy.step == 1


def test_small_updates_of_bfloat16_weights_are_kept():
    # Of entries around 1, whose neighbors in bfloat16 are 2^-8 away: no step of 1e-6 gets there.
    settings = make_settings(warmup_steps=1, weight_decay=0.0)
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    state = training.init_state(stored, make_optimizer(settings, 0.0, rules=None))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim} == {jnp.dtype("float32")}
    before = jax.tree.map(np.asarray, state.params)
    advance = make_update(settings)
    for _ in range(5):
        state, _ = advance(state, make_batch(), 1e-6)
    for name in ("output", "states"):
        moved = np.abs(np.asarray(state.params[name][...]) - before[name][...])
        # Adam's steps are those of the sign while the gradient stays what it is: 5e-6 after five.
        # Float32 rounds each to 6e-8 of an entry below 2.
        has_slope = np.abs(naive_gradient(make_batch(), settings)[1][name]) > 1e-3
        assert has_slope.mean() > 0.9
        np.testing.assert_allclose(moved[has_slope], 5e-6, atol=6e-7)


def test_the_dual_clip_bounds_what_an_overflowing_ratio_costs():
    batch = make_batch(reference=False)
    # One token that the sampling policy found all but impossible, in a sample to be avoided.
    sampled_with = batch.completions.log_probs.copy()
    p, n = np.argwhere(batch.where)[0]
    sampled_with[p, n, 0] = -200.0
    advantages = batch.advantages.copy()
    advantages[p, n] = -1.0
    batch = batch._replace(
        completions=batch.completions._replace(log_probs=sampled_with), advantages=advantages
    )

    def found(clip_dual):
        settings = make_settings(
            loss="clipped_ratio", kl_coefficient=0.0, entropy_coefficient=0.0, clip_dual=clip_dual
        )
        loss = partial(update.loss_and_metrics, GRAPH, settings)
        gradient, metrics = update.accumulated_gradient(loss, PARAMS, batch, 1)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]), metrics

    gradient, metrics = found(0.0)
    assert metrics["loss"] == np.inf
    assert not np.isfinite(gradient).all()
    gradient, metrics = found(3.0)
    assert np.isfinite(gradient).all()
    assert np.isfinite(metrics["loss"])
    assert metrics["kl_to_sampling_policy"] == np.inf  # A diagnostic, and true.
    # The term of that token is 3 instead of infinite.
    batch.completions.log_probs[p, n, 0] = np.log(1e-30)
    _, more = found(0.0)
    _, less = found(2.0)
    assert np.isfinite(more["loss"])
    np.testing.assert_allclose(metrics["loss"] - less["loss"], 1 / batch.where.sum(), rtol=1e-4)


def test_an_entropy_that_is_not_finite_is_no_part_of_a_loss_without_it():
    broken = jax.tree.map(jnp.copy, PARAMS)
    settings = make_settings(entropy_coefficient=0.0, kl_coefficient=0.0)
    with pytest.MonkeyPatch.context() as patch:
        original = update.completion_log_probs
        patch.setattr(
            update,
            "completion_log_probs",
            lambda *args, **kw: original(*args, **kw)._replace(entropy=jnp.full((P, N, T), np.inf)),
        )
        gradient, metrics = update.accumulated_gradient(
            partial(update.loss_and_metrics, GRAPH, settings), broken, make_batch(), 1
        )
    assert metrics["entropy"] == np.inf
    assert np.isfinite(metrics["loss"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_epochs_and_minibatches_are_that_many_steps_over_every_group():
    settings = make_settings(loss="clipped_ratio", epochs=3, minibatches=2, weight_decay=0.0)
    batch = make_batch()
    state = training.init_state(PARAMS, make_optimizer(settings, 0.0, rules=None))
    advance = make_update(settings)
    once, metrics = advance(jax.tree.map(jnp.copy, state), batch, 0.01)
    assert once.step == 6
    assert all(np.ndim(value) == 0 for value in metrics.values())
    again, _ = advance(jax.tree.map(jnp.copy, state), batch, 0.01, 0)
    other, _ = advance(jax.tree.map(jnp.copy, state), batch, 0.01, 1)
    np.testing.assert_array_equal(again.params["states"][...], once.params["states"][...])
    assert np.any(other.params["states"][...] != once.params["states"][...])


def test_one_program_serves_all_steps_rates_and_methods():
    settings, batch = make_settings(), make_batch()
    advantages = chex.assert_max_traces(
        lambda rewards, where, step, method, success_rate: rewards * (method + step), n=1
    )
    advance = update.make_update(
        GRAPH, settings, advantages, optimizer=partial(make_optimizer, settings, rules=None)
    )
    state = training.init_state(PARAMS, make_optimizer(settings, 0.0, rules=None))
    state = jax.tree.map(jnp.copy, state)
    for step, method in ((0, 1), (1, 0), (2, 3)):
        state, _, found = advance(
            state, batch, jax.random.key(step), step=step, learning_rate=0.1, method=method
        )
        np.testing.assert_array_equal(found, batch.rewards * (method + step))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.ones((P, N + 1), np.float32)}, "update: rewards of P groups"),
        ({"valid": np.ones((P, N), np.float32)}, "update: valid is a mask"),
        ({"prompts": Prompts(np.ones((1, 2), np.int32), np.ones((1, 2), bool))}, "a prompt for"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_named(changes, message):
    settings = make_settings()
    state = training.init_state(PARAMS, make_optimizer(settings, 0.0, rules=None))
    batch = make_batch()._replace(**changes)
    with pytest.raises(AssertionError, match=message):
        make_update(settings)(state, batch, 0.1)


def test_nothing_kept_changes_nothing():
    settings = make_settings(weight_decay=0.0)
    batch = make_batch()._replace(where=np.zeros((P, N), bool))
    state = training.init_state(PARAMS, make_optimizer(settings, 0.0, rules=None))
    state, metrics = make_update(settings)(jax.tree.map(jnp.copy, state), batch, 0.01)
    np.testing.assert_array_equal(state.params["states"][...], PARAMS["states"][...])
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["gradient_norm"] == 0


def test_reference_log_probs_are_cut_into_pieces_and_put_together():
    batch = make_batch(reference=False)
    whole, cut = (
        update.make_reference(GRAPH, make_settings(micro_batches=pieces))(
            PARAMS, batch.prompts, batch.completions
        )
        for pieces in (1, 4)
    )
    table = log_prob_table(PARAMS)
    tokens = batch.completions.tokens
    last = np.broadcast_to(batch.prompts.tokens[:, None, -1:], (P, N, 1))
    expected = table[np.concatenate([last, tokens[..., :-1]], axis=-1), tokens]
    expected = np.where(batch.completions.mask, expected, 0)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cut, expected, rtol=1e-5, atol=1e-6)


def test_norms_and_biases_do_not_decay():
    params = {
        "layers": {"mlp_norm": jnp.ones((2, 3)), "qkv_bias": jnp.ones((2, 3)), "down": jnp.ones(3)}
    }
    optimizer = make_optimizer(make_settings(), 1.0, rules=RULES)
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert jax.tree.map(float, jax.tree.map(lambda x: x.ravel()[0], changes)) == {
        "layers": {"mlp_norm": 0, "qkv_bias": 0, "down": pytest.approx(-0.1)}
    }
