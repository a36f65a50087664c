"""Tests of `maxpo.losses`.

Oracles are independent of the implementation: numpy loops over the definition, and expectations by
enumeration of every batch that a small policy can produce.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxpo import losses

NAN, INF = np.nan, np.inf


# --------------------------------------------------------------------------------------------------
# Oracles
# --------------------------------------------------------------------------------------------------


def max_at_k_advantages(rewards, k):
    """K (q_i - v_K^(-i)) by enumeration of all K-subsets."""
    n = len(rewards)
    result = []
    for i in range(n):
        with_i = [s for s in itertools.combinations(range(n), k) if i in s]
        without_i = [s for s in itertools.combinations(range(n), k) if i not in s]
        q = np.mean([max(rewards[j] for j in s) for s in with_i])
        v = np.mean([max(rewards[j] for j in s) for s in without_i])
        result.append(k * (q - v))
    return np.array(result)


def softmax(logits):
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


def max_at_k_gradient(logits, rewards, k):
    """grad of E[max of k i.i.d. draws] with respect to the logits, term by term."""
    probs = softmax(logits)
    gradient = np.zeros(len(probs))
    for draw in itertools.product(range(len(probs)), repeat=k):
        score = sum(np.eye(len(probs))[arm] - probs for arm in draw)
        gradient += np.prod(probs[list(draw)]) * max(rewards[arm] for arm in draw) * score
    return gradient


def all_batches(probs, rewards, n, k):
    """Every batch of n draws, its probability and its advantages."""
    batches = np.array(list(itertools.product(range(len(probs)), repeat=n)))
    weights = np.prod(probs[batches], axis=1)
    advantages = np.array([max_at_k_advantages(rewards[batch], k) for batch in batches])
    return batches, weights, advantages


def expected_gradient(batch_loss, parameters, weights, *batch):
    """sum over batches of probability times the gradient of the loss of that batch."""

    def expected_loss(parameters):
        return jnp.dot(weights, jax.vmap(functools.partial(batch_loss, parameters))(*batch))

    return np.asarray(jax.jit(jax.grad(expected_loss))(parameters))


REWARDS = np.array([-0.5, 0.3, 1.0])
LOGITS = np.array([0.4, -0.3, -0.9])


# --------------------------------------------------------------------------------------------------
# Unbiasedness, by enumeration
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "n", "k"),
    [
        (REWARDS, 4, 1),
        (REWARDS, 4, 2),
        (REWARDS, 4, 3),
        (np.array([0.0, 0.0, 1.0]), 5, 3),
    ],
    ids=["rloo", "k2", "k3", "binary_k3"],
)
def test_score_function_gradient_is_exactly_that_of_max_at_k(rewards, n, k):
    batches, weights, advantages = all_batches(softmax(LOGITS), rewards, n, k)

    def batch_loss(logits, batch, advantages):
        return losses.score_function_loss(jax.nn.log_softmax(logits)[batch], advantages)

    with jax.enable_x64(True):
        gradient = expected_gradient(batch_loss, LOGITS, weights, batches, advantages)
    expected = max_at_k_gradient(LOGITS, rewards, k)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(-gradient, expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_unclipped_ratio_gradient_off_policy(k):
    """Exact for K = 1; for K > 1 that of one draw of pi among K - 1 of the behavior policy."""
    behavior = np.array([0.5, 0.3, 0.2])
    batches, weights, advantages = all_batches(behavior, REWARDS, 4, k)

    def batch_loss(logits, batch, advantages):
        return losses.clipped_ratio_loss(
            jax.nn.log_softmax(logits)[batch],
            jnp.log(behavior)[batch],
            advantages,
            clip_low=1.0,
            clip_high=INF,
        )

    with jax.enable_x64(True):
        gradient = expected_gradient(batch_loss, LOGITS, weights, batches, advantages)

    probs = softmax(LOGITS)
    expected = np.zeros(3)
    for arm, *others in itertools.product(range(3), repeat=k):
        value = max(REWARDS[[arm, *others]])
        score = np.eye(3)[arm] - probs
        expected += k * probs[arm] * np.prod(behavior[others]) * value * score
    np.testing.assert_allclose(-gradient, expected, atol=1e-12)
    is_exact = np.allclose(expected, max_at_k_gradient(LOGITS, REWARDS, k), atol=1e-3)
    assert is_exact == (k == 1)


# A policy over sequences that may stop after one token: "stop", "go a", "go b". The parameters are
# the logits of (stop, go) and of (a, b), so that log pi(sequence) is a sum of one or two tokens.
SEQUENCE_MASK = np.array([[True, False], [True, True], [True, True]])
SEQUENCE_LENGTHS = SEQUENCE_MASK.sum(axis=1)
SEQUENCE_LOGITS = np.array([[0.2, -0.4], [0.5, -0.1]])


def token_log_probs(logits):
    """[3 sequences, 2 tokens], NaN after the end."""
    first, second = jax.nn.log_softmax(logits)
    return jnp.array([[first[0], NAN], [first[1], second[0]], [first[1], second[1]]])


def sequence_max_at_k_gradient(logits, rewards, k):
    """By the chain rule through the logits of the sequences."""
    with jax.enable_x64(True):
        jacobian = np.asarray(
            jax.jacobian(lambda p: jnp.sum(jnp.where(SEQUENCE_MASK, token_log_probs(p), 0), -1))(
                logits
            )
        )
        sequence_logits = np.log(sequence_probs(logits))
    return np.einsum("s,sij->ij", max_at_k_gradient(sequence_logits, rewards, k), jacobian)


def sequence_probs(logits):
    first, second = softmax(logits[0]), softmax(logits[1])
    return np.array([first[0], first[1] * second[0], first[1] * second[1]])


def test_which_normalizations_keep_the_token_level_gradient_unbiased():
    rewards, n, k = np.array([0.7, -0.5, 1.0]), 4, 2
    probs = sequence_probs(SEQUENCE_LOGITS)
    batches, weights, advantages = all_batches(probs, rewards, n, k)
    mean_lengths = SEQUENCE_LENGTHS[batches].mean(axis=1)
    exact = sequence_max_at_k_gradient(SEQUENCE_LOGITS, rewards, k)

    def gradient(weights=weights, **kwargs):
        def batch_loss(logits, batch, advantages):
            return losses.token_score_function_loss(
                token_log_probs(logits)[batch],
                advantages,
                where=jnp.asarray(SEQUENCE_MASK)[batch],
                **kwargs,
            )

        with jax.enable_x64(True):
            return -expected_gradient(batch_loss, SEQUENCE_LOGITS, weights, batches, advantages)

    assert np.abs(exact).max() > 0.05
    np.testing.assert_allclose(gradient(), exact, atol=1e-12)
    np.testing.assert_allclose(
        gradient(loss_aggregation="constant", length=2), exact / 2, atol=1e-12
    )
    # "token" is the exact estimate of each batch, divided by the mean length of that batch ...
    np.testing.assert_allclose(
        gradient(weights * mean_lengths, loss_aggregation="token"), exact, atol=1e-12
    )
    # ... and so neither it nor "sequence" is a multiple of the exact gradient in expectation.
    for loss_aggregation in ("token", "sequence"):
        biased = gradient(loss_aggregation=loss_aggregation)
        cosine = np.vdot(biased, exact) / np.linalg.norm(biased) / np.linalg.norm(exact)
        assert cosine < 1 - 1e-4, loss_aggregation


# --------------------------------------------------------------------------------------------------
# Definitions, against loops
# --------------------------------------------------------------------------------------------------


def random_tokens(seed=0, shape=(3, 4, 5)):
    """Ragged sequences: token log-probs, behavior log-probs, advantages, mask of tokens."""
    rng = np.random.default_rng(seed)
    log_probs = rng.uniform(-3, -0.1, shape).astype(np.float32)
    behavior = log_probs + rng.normal(0, 0.4, shape).astype(np.float32)
    advantages = rng.normal(size=shape[:-1]).astype(np.float32)
    lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
    lengths[..., 0] = 0
    mask = np.arange(shape[-1]) < lengths[..., None]
    return log_probs, behavior, advantages, mask


def ppo_term(ratio, advantage, clip_low, clip_high):
    clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
    return -min(ratio * advantage, clipped * advantage)


def reduce_by_loop(values, mask, loss_aggregation, length):
    """values, mask: [..., N, T]."""
    sequences = [
        [float(v) for v, keep in zip(row, kept, strict=True) if keep]
        for row, kept in zip(
            values.reshape(-1, values.shape[-1]), mask.reshape(-1, mask.shape[-1]), strict=True
        )
    ]
    sequences = [s for s in sequences if s]
    if loss_aggregation == "token":
        return sum(sum(s) for s in sequences) / sum(len(s) for s in sequences)
    if loss_aggregation == "sequence":
        return sum(sum(s) / len(s) for s in sequences) / len(sequences)
    return sum(sum(s) / length for s in sequences) / len(sequences)


LOSS_AGGREGATIONS = [("constant", 1.0), ("constant", 7), ("sequence", 1.0), ("token", 1.0)]


@pytest.mark.parametrize(("loss_aggregation", "length"), LOSS_AGGREGATIONS)
def test_token_losses_equal_loops(loss_aggregation, length):
    log_probs, behavior, advantages, mask = random_tokens()
    kwargs = {"loss_aggregation": loss_aggregation, "length": length}

    np.testing.assert_allclose(
        losses.reduce_tokens(log_probs, **kwargs, where=mask),
        reduce_by_loop(log_probs, mask, **kwargs),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        losses.token_score_function_loss(log_probs, advantages, **kwargs, where=mask),
        reduce_by_loop(-advantages[..., None] * log_probs, mask, **kwargs),
        rtol=1e-5,
    )
    terms = np.vectorize(ppo_term)(
        np.exp(log_probs.astype(np.float64) - behavior), advantages[..., None], 0.1, 0.3
    )
    np.testing.assert_allclose(
        losses.token_clipped_ratio_loss(
            log_probs, behavior, advantages, clip_low=0.1, clip_high=0.3, **kwargs, where=mask
        ),
        reduce_by_loop(terms, mask, **kwargs),
        rtol=1e-5,
    )


def test_sample_losses_equal_loops():
    log_probs, behavior, advantages, mask = (x[0] for x in random_tokens())
    log_probs, behavior, where = log_probs[:, 0], behavior[:, 0], mask[:, 0]
    rows = [i for i in range(4) if where[i]]
    assert 0 < len(rows) < 4
    score = [-float(advantages[i]) * float(log_probs[i]) for i in rows]
    ratio = [
        ppo_term(np.exp(float(log_probs[i]) - float(behavior[i])), advantages[i], 0.1, 0.3)
        for i in rows
    ]
    np.testing.assert_allclose(
        losses.score_function_loss(log_probs, advantages, where=where), np.mean(score), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.clipped_ratio_loss(
            log_probs, behavior, advantages, clip_low=0.1, clip_high=0.3, where=where
        ),
        np.mean(ratio),
        rtol=1e-5,
    )


@pytest.mark.parametrize("length_normalized", [False, True])
def test_sequence_log_probs_equal_loops(length_normalized):
    log_probs, _, _, mask = random_tokens()
    log_probs[~mask] = NAN
    actual = losses.sequence_log_probs(log_probs, length_normalized=length_normalized, where=mask)
    for index in np.ndindex(actual.shape):
        kept = [float(x) for x in log_probs[index] if not np.isnan(x)]
        expected = sum(kept) / (max(len(kept), 1) if length_normalized else 1)
        np.testing.assert_allclose(actual[index], expected, rtol=1e-6)


def test_token_score_function_with_defaults_is_the_sequence_level_loss():
    log_probs, _, advantages, mask = random_tokens()

    def from_sequences(log_probs):
        return losses.score_function_loss(
            losses.sequence_log_probs(log_probs, where=mask), advantages, where=mask.any(-1)
        )

    def from_tokens(log_probs):
        return losses.token_score_function_loss(log_probs, advantages, where=mask)

    chex.assert_trees_all_close(
        jax.value_and_grad(from_tokens)(log_probs),
        jax.value_and_grad(from_sequences)(log_probs),
        rtol=1e-5,
    )


# --------------------------------------------------------------------------------------------------
# The clip
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [
        (1.25, 1.0, True),
        (1.35, 1.0, False),
        (1.35, -1.0, True),
        (0.95, -1.0, True),
        (0.85, -1.0, False),
        (0.85, 1.0, True),
        (0.01, 1.0, True),
        (50.0, -1.0, True),
    ],
)
def test_clip_stops_the_gradient_on_the_proper_side(ratio, advantage, flows):
    behavior, advantages = jnp.array([-1.0]), jnp.array([advantage])
    log_probs = behavior + jnp.log(ratio)
    kwargs = {"clip_low": 0.1, "clip_high": 0.3}

    value, gradient = jax.value_and_grad(losses.clipped_ratio_loss)(
        log_probs, behavior, advantages, **kwargs
    )
    np.testing.assert_allclose(value, ppo_term(ratio, advantage, **kwargs), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-ratio * advantage if flows else 0.0], rtol=1e-6)
    diagnostics = losses.ratio_diagnostics(log_probs, behavior, advantages, **kwargs)
    assert diagnostics.clip_fraction == (0.0 if flows else 1.0)


@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.0, "clip_high": 0.0}])
def test_gradient_at_ratio_one_is_that_of_the_score_function_loss(clip):
    log_probs, _, advantages, mask = random_tokens()
    # `log_probs` as its own behavior policy: no gradient may flow through that argument.
    actual = jax.grad(lambda x: losses.clipped_ratio_loss(x, x, advantages, **clip))(
        log_probs[..., 0]
    )
    expected = jax.grad(losses.score_function_loss)(log_probs[..., 0], advantages)
    assert np.all(expected != 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

    for name in ("constant", "sequence", "token"):
        kwargs = {"loss_aggregation": name, "where": mask}
        actual = jax.grad(
            lambda x, kwargs=kwargs: losses.token_clipped_ratio_loss(
                x, x, advantages, **clip, **kwargs
            )
        )(log_probs)
        expected = jax.grad(losses.token_score_function_loss)(log_probs, advantages, **kwargs)
        np.testing.assert_array_equal(expected != 0, mask)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_clips_can_be_switched_off():
    log_probs, behavior = np.array([-4.0, -0.1], np.float32), np.array([-0.1, -4.0], np.float32)
    advantages = np.array([-1.0, 1.0], np.float32)
    value, gradient = jax.value_and_grad(losses.clipped_ratio_loss)(
        log_probs, behavior, advantages, clip_low=1.0, clip_high=INF
    )
    terms = -np.exp(log_probs - behavior) * advantages
    np.testing.assert_allclose(value, terms.mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, terms / 2, rtol=1e-6)


# Ratios exp(100), beyond float32, and 1: advantages and options, then loss and gradient.
OVERFLOWS = {
    "no advantage": ([0, 0], {}, 0, [0, 0]),
    "clipped": ([1, -1], {}, (-1.2 + 1) / 2, [0, 0.5]),
    "clipped, wide": ([2, 0], {"clip_high": 0.5}, -1.5, [0, 0]),
    "not clipped": ([1, 0], {"clip_high": INF}, -INF, [-INF, 0]),
    "negative": ([-1, 1], {}, INF, [INF, -0.5]),
    "negative, dual": ([-1, 1], {"clip_dual": 3}, (3 - 1) / 2, [0, -0.5]),
    "negative, dual switched off": ([-1, 1], {"clip_dual": INF}, INF, [INF, -0.5]),
    "positive, dual": ([2, 0], {"clip_dual": 3}, -1.2, [0, 0]),
}


@pytest.mark.parametrize(
    ("advantages", "options", "value", "gradient"), OVERFLOWS.values(), ids=OVERFLOWS
)
def test_ratios_that_overflow(advantages, options, value, gradient):
    log_probs, behavior = jnp.float32([-2.0, -1.0]), jnp.float32([-102.0, -1.0])
    advantages = jnp.float32(advantages)
    found = jax.value_and_grad(losses.clipped_ratio_loss)(
        log_probs, behavior, advantages, **options
    )
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-6)
    # As tokens of two sequences, each with a masked token whose ratio overflows, too.
    garbage = jnp.float32([[0.0, -INF], [0.0, 500.0]])
    found = jax.value_and_grad(losses.token_clipped_ratio_loss)(
        garbage.at[:, 0].set(log_probs),
        (-garbage).at[:, 0].set(behavior),
        advantages,
        where=jnp.array([[True, False]] * 2),
        **options,
    )
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], [[g, 0] for g in gradient], rtol=1e-6)


def test_ratios_of_sequences_that_overflow():
    """Sixty tokens, each exp(2) times as likely as before: together exp(120) times."""
    tokens, behavior = jnp.full((2, 60), -1.0), jnp.full((2, 60), -3.0)

    def loss(tokens, advantages):
        return losses.clipped_ratio_loss(
            losses.sequence_log_probs(tokens), losses.sequence_log_probs(behavior), advantages
        )

    value, gradient = jax.value_and_grad(loss)(tokens, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(value, -0.6, rtol=1e-6)
    assert not gradient.any()


@pytest.mark.parametrize("size", [200.0, 3e38])
@pytest.mark.parametrize("advantages", [[0, 0], [1, -1], [-1, 1]])
def test_diagnostics_and_penalties_of_finite_numbers_are_never_nan(size, advantages):
    far = jnp.float32([size, -size])
    for log_probs, other in ((far, -far), (far, 0 * far), (0 * far, far)):
        diagnostics = losses.ratio_diagnostics(log_probs, other, jnp.array(advantages))
        assert not np.isnan(diagnostics).any()
        for estimator in ("k1", "k2", "k3"):
            penalty = functools.partial(losses.kl_penalty, estimator=estimator)
            assert not np.isnan(penalty(log_probs, other)).any()
            gradient = jax.grad(lambda x, y, f=penalty: jnp.sum(f(x, y)))(log_probs, other)
            assert not np.isnan(gradient).any()
    value, gradient = jax.value_and_grad(losses.entropy)(far)
    assert (value, *gradient) == (0, 0, 0)


def test_infinite_diagnostics():
    found = losses.ratio_diagnostics(
        np.float32([-2, -1]), np.float32([-102, -1]), np.float32([1, -1])
    )
    assert found == (0.5, INF, INF)


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "slope"),
    [
        (2.9, -1.0, 2.9, 2.9),
        (3.1, -1.0, 3.0, 0.0),
        (3.1, 1.0, -1.2, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        (0.5, 2.0, -1.0, -1.0),
    ],
)
def test_the_dual_clip_bounds_the_ratio_of_negative_advantages(ratio, advantage, term, slope):
    """max(min(rho A, clip(rho) A), c A), negated, with c = 3."""
    inner = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert term == pytest.approx(-(max(inner, 3 * advantage) if advantage < 0 else inner))
    log_probs, behavior = jnp.array([np.log(ratio)], jnp.float32), jnp.zeros(1)
    advantages = jnp.array([advantage])
    value, gradient = jax.value_and_grad(losses.clipped_ratio_loss)(
        log_probs, behavior, advantages, clip_dual=3.0
    )
    np.testing.assert_allclose([value, gradient[0]], [term, slope], rtol=1e-5)
    of_tokens = losses.token_clipped_ratio_loss(
        log_probs[None], behavior[None], advantages, clip_dual=3.0
    )
    np.testing.assert_allclose(of_tokens, term, rtol=1e-5)
    found = losses.ratio_diagnostics(log_probs, behavior, advantages, clip_dual=3.0)
    assert found.clip_fraction == float(slope == 0)


def test_ratio_diagnostics_equal_loops_at_both_levels():
    log_probs, behavior, advantages, mask = random_tokens()
    clip = {"clip_low": 0.2, "clip_high": 0.25}

    def by_loop(log_probs, behavior, advantages):
        ratios = np.exp(log_probs.astype(np.float64) - behavior)
        clipped = [
            (a > 0 and r > 1.25) or (a < 0 and r < 0.8)
            for r, a in zip(ratios, advantages, strict=True)
        ]
        assert 0 < np.mean(clipped) < 1
        return losses.RatioDiagnostics(
            np.mean(clipped), np.mean(ratios - 1 - np.log(ratios)), np.mean(ratios)
        )

    repeated = np.broadcast_to(advantages[..., None], mask.shape)
    chex.assert_trees_all_close(
        losses.ratio_diagnostics(log_probs, behavior, advantages, **clip, where=mask),
        by_loop(log_probs[mask], behavior[mask], repeated[mask]),
        rtol=1e-4,
    )
    where = mask[..., 0]
    chex.assert_trees_all_close(
        losses.ratio_diagnostics(
            log_probs[..., 0], behavior[..., 0], advantages, **clip, where=where
        ),
        by_loop(log_probs[..., 0][where], behavior[..., 0][where], advantages[where]),
        rtol=1e-4,
    )


def test_ratio_diagnostics_carry_no_gradient():
    log_probs, behavior, advantages, _ = random_tokens()
    gradient = jax.grad(lambda x: sum(losses.ratio_diagnostics(x, behavior, advantages)))(log_probs)
    np.testing.assert_array_equal(gradient, 0)


# --------------------------------------------------------------------------------------------------
# What every loss must satisfy. Each takes tokens; the sample-level ones use the first token.
# --------------------------------------------------------------------------------------------------


def sample_level(loss):
    def from_tokens(log_probs, behavior, advantages, where):
        return loss(log_probs[..., 0], behavior[..., 0], advantages, where[..., 0])

    return from_tokens


LOSSES = {
    "score_function": sample_level(lambda x, b, a, w: losses.score_function_loss(x, a, where=w)),
    "clipped_ratio": sample_level(lambda x, b, a, w: losses.clipped_ratio_loss(x, b, a, where=w)),
    "sequence_ratio": lambda x, b, a, w: losses.clipped_ratio_loss(
        losses.sequence_log_probs(x, length_normalized=True, where=w),
        losses.sequence_log_probs(b, length_normalized=True, where=w),
        a,
        where=w.any(-1),
    ),
}
for _name in ("constant", "sequence", "token"):
    LOSSES[f"token_score_function_{_name}"] = lambda x, b, a, w, name=_name: (
        losses.token_score_function_loss(x, a, loss_aggregation=name, where=w)
    )
    LOSSES[f"token_clipped_ratio_{_name}"] = lambda x, b, a, w, name=_name: (
        losses.token_clipped_ratio_loss(x, b, a, loss_aggregation=name, where=w)
    )
for _name in ("k1", "k2", "k3"):
    LOSSES[_name] = lambda x, b, a, w, name=_name: losses.reduce_tokens(
        losses.kl_penalty(x, b, estimator=name, where=w), where=w
    )

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@functools.cache
def value_and_gradients(loss):
    """jitted value and gradients of a loss in its three array arguments."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


@every_loss
def test_masked_equals_gathered(loss):
    """Padding of tokens, and whole samples, can be cut off without any effect."""
    log_probs, behavior, advantages, mask = random_tokens(shape=(6, 5))
    mask[:, 3:] = False
    rows = mask.any(axis=1)
    assert 0 < rows.sum() < 6
    value, (gradient, _, _) = value_and_gradients(loss)(log_probs, behavior, advantages, mask)
    expected_value, (expected_gradient, _, _) = value_and_gradients(loss)(
        log_probs[rows, :3], behavior[rows, :3], advantages[rows], mask[rows, :3]
    )
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient[rows, :3], expected_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[~rows], 0)
    np.testing.assert_array_equal(gradient[:, 3:], 0)


@every_loss
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_garbage_at_masked_positions_has_no_effect(loss, garbage):
    log_probs, behavior, advantages, mask = random_tokens(shape=(6, 5))
    rows = mask.any(axis=1)
    expected = value_and_gradients(loss)(log_probs, behavior, advantages, mask)
    assert np.any(expected[1][0] != 0)
    actual = value_and_gradients(loss)(
        np.where(mask, log_probs, garbage).astype(np.float32),
        np.where(mask, behavior, -garbage).astype(np.float32),
        np.where(rows, advantages, garbage).astype(np.float32),
        mask,
    )
    chex.assert_trees_all_equal(actual, expected)


@every_loss
def test_nothing_kept_gives_zero(loss):
    shape = (6, 5)
    value, gradients = value_and_gradients(loss)(
        np.full(shape, NAN, np.float32),
        np.full(shape, NAN, np.float32),
        np.full(shape[:1], NAN, np.float32),
        np.zeros(shape, bool),
    )
    assert value == 0
    chex.assert_trees_all_equal(gradients, jax.tree.map(np.zeros_like, gradients))


@every_loss
def test_nan_at_a_kept_position_is_not_hidden(loss):
    log_probs, behavior, advantages, mask = random_tokens(shape=(6, 5))
    row = int(np.flatnonzero(mask[:, 0])[0])
    log_probs[row, 0] = NAN
    value, _ = value_and_gradients(loss)(log_probs, behavior, advantages, mask)
    assert np.isnan(value)


@every_loss
def test_gradient_flows_into_log_probs_only(loss):
    log_probs, behavior, advantages, mask = random_tokens(shape=(6, 5))
    _, gradients = value_and_gradients(loss)(log_probs, behavior, advantages, mask)
    assert np.any(gradients[0] != 0)
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)


@every_loss
def test_jit_equals_eager(loss):
    arguments = random_tokens(shape=(6, 5))
    chex.assert_trees_all_close(
        value_and_gradients(loss)(*arguments)[0], loss(*arguments), rtol=1e-6
    )


@every_loss
def test_leading_axes_are_batch(loss):
    """Pooled over groups: the same as one long group; `vmap` gives one loss for each group."""
    arguments = random_tokens(shape=(2, 3, 5))
    flat = [x.reshape(6, *x.shape[2:]) for x in arguments]
    value = jax.jit(loss)(*arguments)
    chex.assert_shape(value, ())
    np.testing.assert_allclose(value, value_and_gradients(loss)(*flat)[0], rtol=1e-5)

    groups = random_tokens(shape=(3, 6, 5))
    expected = [value_and_gradients(loss)(*group)[0] for group in zip(*groups, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*groups), expected, rtol=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    *arrays, mask = random_tokens(shape=(6, 5))
    half = [jnp.asarray(x, dtype) for x in arrays]
    value = loss(*half, mask)
    assert value.dtype == jnp.float32
    assert value == loss(*(x.astype(jnp.float32) for x in half), mask)


@every_loss
def test_result_has_the_precision_of_the_inputs(loss):
    shapes = (6, 5), (6, 5), (6,)
    mask = jax.ShapeDtypeStruct((6, 5), bool)
    with jax.enable_x64(True):
        for dtype, expected in [
            (jnp.float64, jnp.float64),
            (jnp.float32, jnp.float32),
            (jnp.bfloat16, jnp.float32),
        ]:
            arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
            assert jax.eval_shape(loss, *arrays, mask).dtype == expected


def test_no_nan_arises_on_the_way():
    """So that `jax.debug_nans` can be used to hunt for other people's."""
    mask = np.array([[True, True], [False, False]])
    with jax.debug_nans(True):
        for name in ("constant", "sequence", "token"):
            losses.reduce_tokens(np.ones((2, 2)), loss_aggregation=name, where=mask)
        losses.sequence_log_probs(np.ones((2, 2)), length_normalized=True, where=mask)
        losses.entropy(np.array([[0.0, -INF], [-INF, -INF]]), where=mask)


def test_mask_of_samples_broadcasts_over_groups_and_tokens():
    log_probs, _, advantages, _ = random_tokens()
    keep = np.array([True, False, True, True])
    np.testing.assert_allclose(
        losses.score_function_loss(log_probs[..., 0], advantages, where=keep),
        np.mean(-(advantages * log_probs[..., 0])[:, keep]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        losses.token_score_function_loss(
            log_probs, advantages, loss_aggregation="token", where=keep[None, :, None]
        ),
        np.mean(-(advantages[..., None] * log_probs)[:, keep]),
        rtol=1e-5,
    )


def test_wide_integers_count_by_value():
    wide = np.array([3_000_000_000, 1_000_000_000])
    for values in (wide, wide.astype(np.uint64), wide.tolist()):
        assert losses.masked_mean(values) == 2e9
        np.testing.assert_allclose(losses.score_function_loss([-1, -1], values), 2e9, rtol=1e-6)
    assert losses.masked_mean(2**70) == 2.0**70


def test_masked_mean():
    assert losses.masked_mean([[1.0, NAN], [4.0, 7.0]], where=[[True, False], [True, True]]) == 4.0
    assert losses.masked_mean([1, 2]) == 1.5
    assert losses.masked_mean([NAN, INF], where=[False, False]) == 0.0


# --------------------------------------------------------------------------------------------------
# KL
# --------------------------------------------------------------------------------------------------

REFERENCE_LOGITS = np.array([-0.2, 0.6, 0.1])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_value_and_gradient_in_expectation(estimator):
    probs, reference = softmax(LOGITS), softmax(REFERENCE_LOGITS)
    reverse_kl = np.sum(probs * np.log(probs / reference))
    expected_gradients = {
        "k1": np.zeros(3),
        "k2": probs * (np.log(probs / reference) - reverse_kl),  # of KL(pi || reference)
        "k3": probs - reference,  # of KL(reference || pi)
    }

    def values(logits):
        return losses.kl_penalty(
            jax.nn.log_softmax(logits), jnp.log(reference), estimator=estimator
        )

    with jax.enable_x64(True):
        value = probs @ np.asarray(values(LOGITS))
        gradient = probs @ np.asarray(jax.jacobian(values)(LOGITS))
    np.testing.assert_allclose(gradient, expected_gradients[estimator], atol=1e-12)
    if estimator == "k2":
        assert abs(value - reverse_kl) > 1e-3
        np.testing.assert_allclose(value, probs @ np.log(probs / reference) ** 2 / 2, atol=1e-12)
    else:
        np.testing.assert_allclose(value, reverse_kl, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_of_sequences(estimator):
    """Token values add up to the KL of sequences; only k2 of whole sequences has its gradient."""
    reference_logits = np.array([[-0.5, 0.3], [-0.6, 0.8]])
    probs, reference = sequence_probs(SEQUENCE_LOGITS), sequence_probs(reference_logits)
    exact_value = np.sum(probs * np.log(probs / reference))

    def exact_kl(logits):
        sequences = losses.sequence_log_probs(token_log_probs(logits), where=SEQUENCE_MASK)
        return jnp.sum(jnp.exp(sequences) * (sequences - np.log(reference)))

    def expected(penalties):
        return jnp.dot(probs, penalties)

    def from_tokens(logits):
        penalties = losses.kl_penalty(
            token_log_probs(logits),
            token_log_probs(reference_logits),
            estimator=estimator,
            where=SEQUENCE_MASK,
        )
        return expected(penalties.sum(-1))

    def from_sequences(logits):
        sequences = losses.sequence_log_probs(token_log_probs(logits), where=SEQUENCE_MASK)
        return expected(losses.kl_penalty(sequences, np.log(reference), estimator=estimator))

    with jax.enable_x64(True):
        exact_gradient = jax.grad(exact_kl)(SEQUENCE_LOGITS)
        token_value, token_gradient = jax.value_and_grad(from_tokens)(SEQUENCE_LOGITS)
        gradient = jax.grad(from_sequences)(SEQUENCE_LOGITS)
    assert np.allclose(token_value, exact_value, atol=1e-12) == (estimator != "k2")
    assert np.allclose(gradient, exact_gradient, atol=1e-12) == (estimator == "k2")
    assert not np.allclose(token_gradient, exact_gradient, atol=1e-3)


def test_k3_keeps_its_digits_for_close_policies():
    difference = np.float32(1e-4)
    value = losses.kl_penalty(jnp.array([difference]), jnp.zeros(1, jnp.float32), estimator="k3")
    np.testing.assert_allclose(value, [np.float64(difference) ** 2 / 2], rtol=1e-2)


def test_kl_is_zero_where_masked():
    where = np.array([True, False])
    for estimator in ("k1", "k2", "k3"):
        values = losses.kl_penalty(
            jnp.array([-1.0, NAN]), jnp.array([-2.0, INF]), estimator=estimator, where=where
        )
        assert values[0] > 0
        assert values[1] == 0


# --------------------------------------------------------------------------------------------------
# Entropy
# --------------------------------------------------------------------------------------------------


def entropy_oracle(logits):
    """Value and gradient of one row, from the definition, over the finite logits."""
    kept = np.isfinite(logits)
    probs = softmax(np.asarray(logits, np.float64)[kept])
    value = -sum(p * np.log(p) for p in probs if p > 0)
    gradient = np.zeros(len(logits))
    gradient[kept] = [-p * (np.log(p) + value) if p > 0 else 0.0 for p in probs]
    return value, gradient


@pytest.mark.parametrize(
    "logits",
    [
        [0.3, -1.2, 2.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [0.3, -INF, 2.0, -INF],
        [-INF, -INF, 5.0, -INF],
        [1e4, 1e4 - 1, -1e4, 3.0],
        [-1e30, 0.0, 0.1, 1e-30],
    ],
    ids=["plain", "uniform", "masked", "one_left", "large", "huge_negative"],
)
def test_entropy_equals_definition(logits):
    expected_value, expected_gradient = entropy_oracle(np.array(logits))
    value, gradient = jax.value_and_grad(losses.entropy)(jnp.array(logits))
    np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_entropy_batch_with_masks():
    """One call with rows masked by `where`, by -inf, by both, entirely, and by -inf entirely."""
    logits = np.array(
        [[0.5, 1.0, -0.3], [0.5, NAN, -0.3], [0.5, -INF, INF], [NAN, INF, 1.0], [-INF] * 3],
        np.float32,
    )
    where = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    values = losses.entropy(logits, where=where)
    gradient = jax.grad(lambda x: jnp.sum(losses.entropy(x, where=where)))(logits)
    for row in range(3):
        expected_value, expected_gradient = entropy_oracle(np.where(where[row], logits[row], -INF))
        np.testing.assert_allclose(values[row], expected_value, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(gradient[row], expected_gradient, atol=1e-6)
    np.testing.assert_array_equal(values[3:], 0)
    np.testing.assert_array_equal(gradient[3:], 0)


def test_entropy_nan_stays_in_its_row():
    values = losses.entropy([[NAN, 0.0], [0.0, 0.0]])
    assert np.isnan(values[0])
    np.testing.assert_allclose(values[1], np.log(2), rtol=1e-6)


def test_entropy_of_bfloat16_is_computed_in_float32():
    logits = jnp.array([[0.3, -1.2, 2.0], [1.0, 1.0, -jnp.inf]], jnp.bfloat16)
    values = losses.entropy(logits)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, losses.entropy(logits.astype(jnp.float32)))
    np.testing.assert_allclose(
        values, [entropy_oracle(np.asarray(row, np.float64))[0] for row in logits], rtol=1e-6
    )


# --------------------------------------------------------------------------------------------------
# Mistakes
# --------------------------------------------------------------------------------------------------

GROUP, TOKENS = jnp.zeros((2, 4)), jnp.zeros((2, 4, 3))
INT_MASK = jnp.ones((2, 4), jnp.int32)

MISTAKES = {
    "advantages of another group": (
        lambda: losses.score_function_loss(GROUP, jnp.zeros((2, 3))),
        ValueError,
        r"expected advantages of the shape of log_probs \(2, 4\), got \(2, 3\)",
    ),
    "advantages that would broadcast": (
        lambda: losses.score_function_loss(GROUP, jnp.zeros((4,))),
        ValueError,
        r"expected advantages .* got \(4,\)",
    ),
    "sample loss of a scalar": (
        lambda: losses.score_function_loss(0.0, 0.0),
        ValueError,
        r"expected log_probs \[..., N\], got a scalar",
    ),
    "behavior of another shape": (
        lambda: losses.clipped_ratio_loss(GROUP, GROUP[0], GROUP),
        ValueError,
        r"expected behavior_log_probs of the shape of log_probs \(2, 4\), got \(4,\)",
    ),
    "token log-probs at sample level": (
        lambda: losses.score_function_loss(TOKENS, GROUP),
        ValueError,
        r"expected advantages of the shape of log_probs \(2, 4, 3\), got \(2, 4\)",
    ),
    "advantages for each token": (
        lambda: losses.token_score_function_loss(TOKENS, TOKENS),
        ValueError,
        r"expected advantages \[..., N\] of shape \(2, 4\) .* got \(2, 4, 3\)",
    ),
    "sample log-probs at token level": (
        lambda: losses.token_score_function_loss(GROUP[0], jnp.zeros(())),
        ValueError,
        r"expected log_probs \[..., N, T\], got shape \(4,\)",
    ),
    "diagnostics of mismatched shapes": (
        lambda: losses.ratio_diagnostics(TOKENS, TOKENS, GROUP[0]),
        ValueError,
        r"expected advantages .* got \(4,\)",
    ),
    "reference of another shape": (
        lambda: losses.kl_penalty(GROUP, GROUP[0], estimator="k1"),
        ValueError,
        r"expected reference_log_probs of the shape of log_probs \(2, 4\), got \(4,\)",
    ),
    "integer mask": (
        lambda: losses.score_function_loss(GROUP, GROUP, where=INT_MASK),
        TypeError,
        "expected a boolean where, got dtype int32",
    ),
    "integer token mask": (
        lambda: losses.token_clipped_ratio_loss(
            TOKENS, TOKENS, GROUP, where=jnp.ones_like(TOKENS, jnp.int32)
        ),
        TypeError,
        "expected a boolean where, got dtype int32",
    ),
    "integer mask of logits": (
        lambda: losses.entropy(GROUP, where=INT_MASK),
        TypeError,
        "expected a boolean where, got dtype int32",
    ),
    "mask that does not broadcast": (
        lambda: losses.score_function_loss(GROUP, GROUP, where=jnp.ones((3,), bool)),
        ValueError,
        r"expected where broadcastable to \(2, 4\), got shape \(3,\)",
    ),
    "mask that would enlarge": (
        lambda: losses.masked_mean(GROUP[0], where=jnp.ones((2, 4), bool)),
        ValueError,
        r"expected where broadcastable to \(4,\), got shape \(2, 4\)",
    ),
    "mask of samples at token level": (
        lambda: losses.token_score_function_loss(TOKENS, GROUP, where=jnp.ones((2, 4), bool)),
        ValueError,
        r"expected where of the rank of log_probs \(2, 4, 3\), got shape \(2, 4\)",
    ),
    "unknown loss_aggregation": (
        lambda: losses.reduce_tokens(TOKENS, loss_aggregation="mean"),
        ValueError,
        r"expected loss_aggregation .* \('constant', 'sequence', 'token'\), got 'mean'",
    ),
    "length without a use": (
        lambda: losses.reduce_tokens(TOKENS, loss_aggregation="token", length=8),
        ValueError,
        "expected length only with .* got length=8 with loss_aggregation='token'",
    ),
    "length zero": (
        lambda: losses.reduce_tokens(TOKENS, length=0),
        ValueError,
        "expected a positive, finite length, got 0",
    ),
    "length nan": (
        lambda: losses.reduce_tokens(TOKENS, length=NAN),
        ValueError,
        "expected a positive, finite length, got nan",
    ),
    "negative clip_low": (
        lambda: losses.clipped_ratio_loss(GROUP, GROUP, GROUP, clip_low=-0.1),
        ValueError,
        "expected 0 <= clip_low <= 1, got -0.1",
    ),
    "clip_low above one": (
        lambda: losses.token_clipped_ratio_loss(TOKENS, TOKENS, GROUP, clip_low=1.2),
        ValueError,
        "expected 0 <= clip_low <= 1, got 1.2",
    ),
    "negative clip_high": (
        lambda: losses.ratio_diagnostics(GROUP, GROUP, GROUP, clip_high=-1.0),
        ValueError,
        "expected clip_high >= 0, got -1.0",
    ),
    "dual clip of one": (
        lambda: losses.clipped_ratio_loss(GROUP, GROUP, GROUP, clip_dual=1.0),
        ValueError,
        "expected clip_dual > 1 or None, got 1.0",
    ),
    "dual clip nan": (
        lambda: losses.token_clipped_ratio_loss(TOKENS, TOKENS, GROUP, clip_dual=NAN),
        ValueError,
        "expected clip_dual > 1 or None, got nan",
    ),
    "complex log-probs": (
        lambda: losses.score_function_loss(GROUP.astype(jnp.complex64), GROUP),
        TypeError,
        "expected log_probs of a real dtype, got complex64",
    ),
    "unknown estimator": (
        lambda: losses.kl_penalty(GROUP, GROUP, estimator="k4"),
        ValueError,
        r"expected estimator .* \('k1', 'k2', 'k3'\), got 'k4'",
    ),
    "entropy of a scalar": (
        lambda: losses.entropy(0.0),
        ValueError,
        r"expected logits \[..., A\], got shape \(\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_say_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()
