"""Variances and scores against exact ones, by enumeration of all answers of one puzzle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import MAX_ESTIMATORS

from configs import lm_centering
from maxpo.studies.lm_centering import puzzle, variance
from maxpo.studies.lm_centering.policy import make_draw, make_policies
from maxpo.studies.lm_centering.puzzle import TOKENIZER

pytestmark = pytest.mark.slow  # Whole studies.

N, K, SEEDS = 4, 2, 64
NAMES = ("maxpo", "pkpo_loo_minus_one")


@pytest.fixture(scope="module")
def config():
    config = lm_centering.get_config("quick")
    config.methods = tuple(f"{name}:k={K}" for name in NAMES)
    config.puzzle.update(digits=1, least=10, most=10, held_out=9)  # One puzzle to learn from.
    config.model.update(hidden=8, layers=1, mlp=8)
    config.rl.update(group_size=N, temperature=0.7)
    config.variance_prompts = 64
    return config


@pytest.fixture(scope="module")
def policy(config):
    """Structure, parameters that are large enough for unequal probabilities, and the puzzle."""
    graph, params = make_policies(config, jax.random.split(jax.random.key(4), 1))
    learned, _ = puzzle.split(puzzle.all_puzzles(10, 10), 9, config.seed)
    return graph, jax.tree.map(lambda x: 3 * x[0], params), learned


@pytest.fixture(scope="module")
def measured(config, policy):
    graph, params, learned = policy
    measure = variance.make_measure(config, graph, learned, make_draw(config, graph))
    keys = jax.random.split(jax.random.key(2), SEEDS)
    return jax.jit(jax.vmap(measure, in_axes=(0, None)))(keys, params)


@pytest.fixture(scope="module")
def answers(config, policy):
    """Of all answers: probabilities `[A]`, scores `[A, D]`, and which are of each kind `[3, A]`."""
    graph, params, learned = policy
    eos, tokens = TOKENIZER.eos_id, range(TOKENIZER.vocab_size)
    pairs = [pair for pair in itertools.product(tokens, tokens) if pair[0] != eos]
    (prompt,) = learned.prompts.tokens

    def log_probs(params):
        model = nnx.merge(graph, params)
        rows = jnp.stack([jnp.append(prompt, token) for token in tokens])
        logits = model(rows, jnp.ones(rows.shape, bool))[:, -2:] / config.rl.temperature
        first, second = jnp.moveaxis(jax.nn.log_softmax(logits), 1, 0)
        return jnp.stack([first[0, eos], *(first[0, a] + second[a, b] for a, b in pairs)])

    found, pull_back = jax.vjp(log_probs, params)
    by_leaf = jax.tree.leaves(jax.lax.map(lambda row: pull_back(row)[0], jnp.eye(len(found))))
    scores = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in by_leaf], axis=1)
    digits = {TOKENIZER.encode(digit)[0]: int(digit) for digit in "0123456789"}
    formed = np.array([False, *(a in digits and b == eos for a, b in pairs)])
    right = formed & np.array([False, *(digits.get(a) != learned.forbidden[0] for a, _ in pairs)])
    kinds = np.stack([right, formed & ~right, ~formed])
    return np.exp(np.float64(found)), np.float64(scores), kinds


def exact_trace(answers, name):
    """`E |g|^2 - |E g|^2` over all rewards of a group, whose samples are independent given them."""
    probabilities, scores, (right, _, _) = answers
    shares = [probabilities * ~right, probabilities * right]
    chances = [share.sum() for share in shares]
    means = np.stack([share @ scores / share.sum() for share in shares])
    squares = np.array([share @ (scores**2).sum(axis=1) / share.sum() for share in shares])
    second, first = 0.0, 0.0
    for rewards in itertools.product((0, 1), repeat=N):
        values = MAX_ESTIMATORS[name][0](np.array(rewards, float), K) / N
        of_samples = values[:, None] * means[list(rewards)]
        mean = of_samples.sum(axis=0)
        spread = values**2 @ squares[list(rewards)] - (of_samples**2).sum()
        chance = np.prod([chances[reward] for reward in rewards])
        second += chance * (mean @ mean + spread)
        first += chance * mean
    return second - first @ first


def test_traces_are_those_of_the_exact_covariance(answers, measured):
    assert answers[0].sum() == pytest.approx(1, abs=1e-5)
    for name, traces in zip(NAMES, measured.traces.T, strict=True):
        exact, error = exact_trace(answers, name), traces.std(ddof=1) / SEEDS**0.5
        assert error < 0.1 * exact
        assert abs(traces.mean() - exact) < 4 * error


def test_scores_are_those_of_each_kind_of_answer(answers, measured, config):
    probabilities, scores, kinds = answers
    drawn = 2 * N * config.variance_prompts
    np.testing.assert_array_equal(measured.samples.sum(axis=1), drawn)
    for kind, samples, squares in zip(
        kinds, measured.samples.T, measured.squared_norms.T, strict=True
    ):
        chance = probabilities @ kind
        assert abs(samples.mean() / drawn - chance) < 4 * (chance / drawn / SEEDS) ** 0.5
        exact = (probabilities * kind) @ (scores**2).sum(axis=1)
        error = squares.std(ddof=1) / SEEDS**0.5 / drawn
        assert error < 0.1 * exact
        assert abs(squares.mean() / drawn - exact) < 4 * error


def test_summary_of_seeds():
    row = {
        "traces": [[1.0, 2.0], [3.0, 4.0]],
        "squared_norms": [[4.0, 9.0, 0.0], [12.0, 9.0, 0.0]],
        "samples": [[1, 3, 0], [3, 3, 0]],
    }
    found = variance.summarize(row, ["maxpo k=2", "rloo"])
    # Of two values the standard error is half of their distance, and 1 - 2/3 * 2 = -(3 - 2/3 * 4).
    assert found["methods"]["rloo"] == pytest.approx(
        {
            "gradient_variance": 3,
            "gradient_variance_sem": 1,
            "maxpo_ratio": 2 / 3,
            "maxpo_ratio_sem": 1 / 9,
        }
    )
    maxpo = found["methods"]["maxpo k=2"]
    assert (maxpo["gradient_variance"], maxpo["maxpo_ratio"]) == (2, 1)
    right, wrong, out_of_format = (found["scores"][kind] for kind in variance.KINDS)
    assert right == {"samples": 4, "squared_norm": 4, "squared_norm_sem": 0}
    assert (wrong["samples"], wrong["squared_norm"]) == (6, 3)
    assert out_of_format["samples"] == 0
    assert np.isnan(out_of_format["squared_norm"])
