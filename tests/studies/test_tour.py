"""What the notebook shows, against its definitions."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from maxpo import estimators
from maxpo.runs import load_config
from maxpo.studies import tour

REWARDS = np.array([0.3, -1.0, 2.0, 0.9], np.float32)


@pytest.mark.parametrize("name", ["rloo", "pkpo", "maxpo"])
def test_shares_are_advantages_over_k(name):
    ks = [1, 2, 3]
    groups = np.stack([REWARDS, REWARDS**2])
    shares = tour.shares_over_k(name, groups, ks)
    function = estimators.get(name)
    expected = [function(groups) if name == "rloo" else function(groups, k) / k for k in ks]
    np.testing.assert_allclose(shares, expected, rtol=1e-5, atol=1e-6)


def test_figure_of_one_group_has_a_line_for_each_sample_sorted():
    names = ("maxpo", "pkpo", "rloo", "canonical")
    figure = tour.advantages_over_k(REWARDS, names)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == list(names)
    lines = shown[0].get_lines()[1:]  # The first is the axis.
    assert [line.get_label() for line in lines] == ["2", "0.9", "0.3", "-1"]
    order = np.argsort(-REWARDS)
    for k in (1, 2, 3):
        at_k = [float(line.get_ydata()[line.get_xdata() == k].item()) for line in lines]
        expected = estimators.maxpo(REWARDS, k)[order] / k
        np.testing.assert_allclose(at_k, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (9,), (2, 4), ()])
def test_a_group_without_room_is_refused(shape):
    with pytest.raises(ValueError, match="expected a vector of 2 to 8 numbers, got shape"):
        tour.advantages_over_k(np.ones(shape), ("maxpo",))


def test_sums_are_zero_for_centered_estimators_alone():
    groups = np.random.default_rng(0).normal(size=(50, 6))
    figure = tour.sums_over_k(groups, ("maxpo", "pkpo_loo_minus_one", "pkpo_loo"), shifts=(0, 5))
    for axis in figure.axes:
        maxpo, minus_one, loo = (line.get_ydata() for line in axis.get_lines())
        np.testing.assert_allclose(maxpo, 0, atol=1e-6)
        np.testing.assert_allclose(minus_one[1:], 1, atol=1e-6)  # Never negative from k = 2 on.
        assert np.all(loo[2:] < 0)


def test_sums_of_constant_groups_are_zero_not_nan():
    (axis,) = tour.sums_over_k(np.zeros((2, 4)), ("maxpo",), shifts=(0,)).axes
    np.testing.assert_array_equal(axis.get_lines()[0].get_ydata(), 0)


def test_regime_rows_agree_with_enumeration():
    """Two arms of probability 1/2 and N = 3: eight groups, one-dimensional scores."""
    groups = np.array(list(np.ndindex(2, 2, 2)), np.float32)
    scores = groups - 0.5
    rows = tour.regime_rows((2,), (0.5,), group_size=3)
    assert [row["k"] for row in rows] == [1, 2]
    for row in rows:
        maxpo, reference = (
            np.var(np.mean(np.asarray(function(groups, row["k"])) * scores, axis=-1))
            for function in (estimators.maxpo, estimators.pkpo_loo_minus_one)
        )
        np.testing.assert_allclose(2 ** row["exact_log2_ratio"], maxpo / reference, rtol=1e-5)


def bandit_config() -> ConfigDict:
    config = load_config("configs/bandit.py")
    config.update(methods=("rloo", "maxpo:k=2"), seeds=2, updates=4, evaluate_every=2)
    config.update(group_size=4, variance_batches=2)
    config.task.update(num_contexts=2, num_features=0, num_arms=3)
    return config


def test_training_yields_a_history_that_grows():
    config = bandit_config()
    lengths, history = [], []
    for history in tour.train(config):
        lengths.append(len(history))
    assert lengths == [2, 4, 6]
    points = [(row["step"], row["method"]) for row in history]
    assert points == [(step, name) for step in (0, 2, 4) for name in ("rloo", "maxpo k=2")]
    start, end = history[1], history[-1]
    assert start["max_at_k"] == history[0]["max_at_k"] != end["max_at_k"]


def test_a_method_trains_with_its_own_learning_rate():
    config = bandit_config()
    config.methods = ("rloo:learning_rate=1e-9", "maxpo:k=2")
    *_, history = tour.train(config)
    rewards = {name: [] for name in ("rloo", "maxpo k=2")}
    for row in history:
        rewards[row["method"]].append(row["mean_reward"])
    assert max(rewards["rloo"]) - min(rewards["rloo"]) < 1e-6
    assert max(rewards["maxpo k=2"]) - min(rewards["maxpo k=2"]) > 1e-3


def test_a_config_without_sense_is_refused():
    config = bandit_config()
    config.seeds = 1
    with pytest.raises(ValueError, match="seeds: expected at least 2, got 1"):
        next(tour.train(config))
