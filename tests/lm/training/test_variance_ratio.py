"""The predicted ratio against enumeration, the measured one against gradients written by hand."""

import types

import numpy as np
import pytest
from bigrams import VOCABULARY, Bigrams
from flax import nnx
from ml_collections import ConfigDict
from oracles import MAX_ESTIMATORS

from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.training.gradient_variance import (
    make_group_gradient,
    pair_variances,
    ratio_of_means,
)
from maxpo.lm.training.update import Batch
from maxpo.lm.training.variance_ratio import Measurement, make_variance_ratio
from maxpo.methods import parse_method

G, N, T = 3, 5, 4
TEMPERATURE = 0.7
NAMES = ("maxpo", "pkpo_loo_minus_one")
GRAPH, PARAMS = nnx.split(Bigrams(rngs=nnx.Rngs(0)))


def advantages(name, rewards, where, k):
    """By enumeration of the subsets of the samples that are kept."""
    found = np.zeros(rewards.shape)
    for group, kept, row in zip(rewards, where, found, strict=True):
        if kept.sum() > k:
            row[kept] = MAX_ESTIMATORS[name][0](group[kept], k)
    return found


def rollouts(rewards, where=None):
    rewards = np.array(rewards, np.float32)
    where = np.ones(rewards.shape, bool) if where is None else np.array(where)
    return types.SimpleNamespace(rewards=rewards, valid=where, where=where)


@pytest.mark.parametrize("spec", ["maxpo:k=3", "blended:k=3,weight=0.5", "maxpo:k=3->2"])
def test_the_prediction_is_a_ratio_of_sums_over_the_whole_batch(spec):
    groups = rollouts(
        [[0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0.25, 0.5, 0, 1, 0.5], [1, 0, 1, 0, 0]],
        [[True] * 5, [True] * 5, [True] * 5, [False, True, True, True, True]],
    )
    ratio = make_variance_ratio(parse_method(spec), steps=1)
    for step, k in ((1, 3), (2, 2 if "->" in spec else 3)):
        squares = [np.sum(advantages(name, groups.rewards, groups.where, k) ** 2) for name in NAMES]
        found = ratio.predicted(step, groups)
        assert found == {"predicted_variance_ratio": pytest.approx(squares[0] / squares[1])}


def test_samples_that_count_in_no_loss_count_in_no_prediction():
    rewards = [[0, 1, 0, 0, 0], [0.25, 0.5, 0, 1, 0.5]]
    groups = rollouts(rewards)
    groups.where = np.array([[True] * 5, [False] * 5])
    ratio = make_variance_ratio(parse_method("maxpo:k=2"), steps=1)
    assert ratio.predicted(1, groups) == ratio.predicted(1, rollouts(rewards[:1]))
    assert ratio.predicted(1, groups) != ratio.predicted(1, rollouts(rewards))


def test_without_advantages_there_is_no_ratio():
    ratio = make_variance_ratio(parse_method("maxpo:k=2"), steps=1)
    assert np.isnan(
        ratio.predicted(1, rollouts([[1.0] * 5, [0.0] * 5]))["predicted_variance_ratio"]
    )


@pytest.mark.parametrize("spec", ["rloo", "grpo", "maxpo:k=1", "maxpo:k=adaptive"])
def test_a_method_without_one_k_above_1_has_no_ratio(spec):
    assert make_variance_ratio(parse_method(spec, adaptive=True), steps=4) is None


def make_pairs():
    """2 G groups of samples of the policy; the last pair is one without variance."""
    rng = np.random.default_rng(1)
    starts = np.repeat(rng.integers(0, VOCABULARY, (G, 2)), 2, axis=0)
    prompts = Prompts(starts, np.ones(starts.shape, bool))
    tokens = rng.integers(0, VOCABULARY, (2 * G, N, T))
    mask = np.arange(T) < rng.integers(1, T + 1, (2 * G, N, 1))
    table = np.log(probabilities(*parameters()))
    own = np.where(mask, table[tokens_before(prompts, tokens), tokens], 0)
    rewards = rng.integers(0, 4, (2 * G, N)).astype(np.float32)
    rewards[-2:] = 1.0
    where = np.ones((2 * G, N), bool)
    where[0, 1] = False
    completions = Completions(tokens, own.astype(np.float32), mask)
    return Batch(prompts, completions, rewards, where, where)


def parameters():
    return [np.asarray(PARAMS[name][...], np.float64) for name in ("states", "output")]


def probabilities(states, output):
    weights = np.exp(states @ output.T / TEMPERATURE)
    return weights / weights.sum(axis=-1, keepdims=True)


def tokens_before(prompts, tokens):
    last = np.broadcast_to(prompts.tokens[:, None, -1:], (*tokens.shape[:2], 1))
    return np.concatenate([last, tokens[..., :-1]], axis=-1)


def gradient_by_hand(pairs, values, group, aggregation):
    """Of minus the mean over kept samples of advantage times log-probability, both matrices."""
    states, output = parameters()
    of_logits = np.zeros((VOCABULARY, VOCABULARY))
    before = tokens_before(pairs.prompts, pairs.completions.tokens)
    kept = pairs.where[group]
    lengths = pairs.completions.mask[group].sum(axis=-1)
    for n in np.flatnonzero(kept):
        share = (
            values[group, n]
            / {
                "constant": kept.sum(),
                "sequence": kept.sum() * lengths[n],
                "token": lengths[kept].sum(),
            }[aggregation]
        )
        for t in range(lengths[n]):
            s, token = before[group, n, t], pairs.completions.tokens[group, n, t]
            score = np.eye(VOCABULARY)[token] - probabilities(states, output)[s]
            of_logits[s] -= share * score / TEMPERATURE
    return np.concatenate([np.ravel(of_logits @ output), np.ravel(of_logits.T @ states)])


def make_settings(loss, aggregation):
    return ConfigDict(
        {
            "loss": loss,
            "importance_level": "token",
            "loss_aggregation": aggregation,
            "length": 1.0,
            "clip_low": 0.2,
            "clip_high": 0.3,
            "clip_dual": 0.0,
            "kl_coefficient": 0.2,
            "kl_estimator": "k2",
            "entropy_coefficient": 0.5,
            "temperature": TEMPERATURE,
        }
    )


@pytest.mark.parametrize(
    ("loss", "aggregation"),
    [("score_function", "constant"), ("score_function", "token"), ("clipped_ratio", "sequence")],
)
def test_variances_are_those_of_the_policy_gradient_written_out(loss, aggregation):
    settings, pairs = make_settings(loss, aggregation), make_pairs()
    measurement = Measurement(1, G, make_group_gradient(GRAPH, settings))
    ratio = make_variance_ratio(parse_method("maxpo:k=2"), 4, measurement)
    found = ratio.measured(PARAMS, 1, pairs)

    expected = []
    for name in NAMES:
        values = advantages(name, pairs.rewards, pairs.where, 2)
        gradients = [gradient_by_hand(pairs, values, i, aggregation) for i in range(2 * G)]
        # The unbiased sample covariance of two gradients is a matrix; its trace is asked for.
        traces = [
            np.trace(np.cov(np.stack(gradients[i : i + 2]), rowvar=False))
            for i in range(0, 2 * G, 2)
        ]
        assert traces[-1] == 0
        expected.append(traces)
        of_pairs = pair_variances(
            measurement.gradient, PARAMS, pairs._replace(advantages=values.astype(np.float32))
        )
        np.testing.assert_allclose(of_pairs, traces, rtol=1e-4, atol=1e-9)
    means = [np.mean(traces) for traces in expected]
    assert found["gradient_variance_maxpo"] == pytest.approx(means[0], rel=1e-4)
    assert found["gradient_variance_pkpo_loo_minus_one"] == pytest.approx(means[1], rel=1e-4)
    assert found["variance_ratio"] == pytest.approx(means[0] / means[1], rel=1e-4)
    # The textbook form of the delta method: variances and the covariance of relative errors.
    cov = np.cov(expected) / np.outer(means, means) / G
    error = means[0] / means[1] * np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    assert found["variance_ratio_sem"] == pytest.approx(error, rel=1e-3)


def test_the_error_covers_the_ratio_of_means():
    """About two thirds of all ratios of 400 lie within one standard error, 95% within two."""
    rng = np.random.default_rng(0)
    sizes = rng.gamma(2.0, size=(400, 64))
    noisy = 0.8 * sizes * rng.uniform(0.5, 1.5, sizes.shape)
    found = [ratio_of_means(a, b) for a, b in zip(noisy, sizes, strict=True)]
    deviations = np.array([(each.value - 0.8) / each.error for each in found])
    # Standard errors of these shares are 0.023 and 0.011.
    assert abs(np.mean(np.abs(deviations) < 1) - 0.683) < 0.08
    assert abs(np.mean(np.abs(deviations) < 2) - 0.954) < 0.04


def test_a_ratio_of_nothing_is_nan_and_one_pair_tells_of_no_error():
    assert np.isnan(ratio_of_means(np.zeros(3), np.zeros(3))).all()
    value, error = ratio_of_means(np.array([0.0, 3.0]), np.array([0.0, 2.0]))
    assert value == 1.5
    assert np.isnan(error)


def test_when_a_measurement_is_due():
    method = parse_method("maxpo:k=2")
    ratio = make_variance_ratio(method, 9, Measurement(3, G, make_group_gradient))
    assert [step for step in range(1, 10) if ratio.is_due(step)] == [3, 6, 9]
    assert not make_variance_ratio(method, 9).is_due(3)
