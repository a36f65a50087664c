"""Tunix: its registry, and its own GRPO learner with our advantages on a tiny random model."""

import importlib

import jax
import numpy as np
import pytest
import tunix_warnings
from flax import nnx

from experiments import tunix_lm
from maxpo import estimators
from maxpo.integrations import tunix as integration
from maxpo.runs import load_config

pytest.importorskip("tunix")
registry = importlib.import_module("tunix.rl.function_registry")

pytestmark = tunix_warnings.IGNORED


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch):
    """Tunix's registry as it is before our names, and again after the test."""
    importlib.import_module("tunix.rl.algo_core")  # Registers Tunix's own.
    before = {category: dict(f) for category, f in registry.default_registry._registry.items()}
    monkeypatch.setattr(registry.default_registry, "_registry", before)


def advantages(name, rewards, n):
    return registry.get_advantage_estimator(name)(rewards=rewards, num_generations=n)


def test_registers_all_that_need_k_alone():
    names = integration.register(k=4)
    assert set(names) == set(estimators.names()) - {"grpo", "rloo", "l_statistic", "blended"}
    assert set(names) < set(integration.names())
    rewards = np.random.default_rng(0).normal(size=3 * 8).astype(np.float32)
    for name in names:
        function = estimators.get(name)
        needs_k = name not in {"reinforce", "dr_grpo", "max_rl", "tail_rl"}
        expected = function(rewards.reshape(3, 8), *([4] if needs_k else []))
        np.testing.assert_array_equal(advantages(name, rewards, 8), np.ravel(expected), name)


def test_names_with_their_own_k():
    assert integration.register("maxpo:2", "maxpo:3", "pkpo", k=4) == ("maxpo:2", "maxpo:3", "pkpo")
    rewards = np.arange(5.0, dtype=np.float32) ** 2
    for name, k in (("maxpo:2", 2), ("maxpo:3", 3)):
        np.testing.assert_array_equal(advantages(name, rewards, 5), estimators.maxpo(rewards, k))


def test_methods_with_settings_of_their_own():
    specs = ("maxpo:k=3", "blended:k=2,weight=0.5", "grpo:epsilon=1e-3")
    assert integration.register(*specs) == specs
    rewards = np.arange(5.0, dtype=np.float32) ** 2
    for name, expected in zip(
        specs,
        (
            estimators.maxpo(rewards, 3),
            estimators.blended(rewards, 2, 0.5),
            estimators.grpo(rewards, epsilon=1e-3),
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(advantages(name, rewards, 5), expected)
    for spec, message in (
        ("maxpo:k=8->1", "expected one k"),
        ("rloo:learning_rate=1e-3", "no learning_rate"),
        ("maxpo:j=3", "expected options among"),
    ):
        with pytest.raises(ValueError, match=message):
            integration.register(spec)


def test_twice_is_an_error_and_changes_nothing():
    integration.register(k=4)
    before = registry.get_advantage_estimator("maxpo")
    with pytest.raises(ValueError, match=r"Tunix has .*maxpo.* already.*maxpo:k=8"):
        integration.register(k=8)
    with pytest.raises(ValueError, match="rloo already"):
        integration.register("rloo", "maxpo:5")
    assert registry.get_advantage_estimator("maxpo") is before
    assert "maxpo:5" not in integration.names()


@pytest.mark.parametrize(
    ("names", "k", "error", "message"),
    [
        ((), None, TypeError, "expected k"),
        (("maxpo",), None, TypeError, "expected k for 'maxpo'"),
        (("maxpoo",), 4, ValueError, "expected one of .*maxpo, .*got 'maxpoo'"),
        (("maxpo:x",), None, ValueError, "NAME:K"),
        (("dr_grpo:4",), None, ValueError, "has no k"),
        (("l_statistic",), 4, ValueError, "needs more than k"),
        (("maxpo",), 0, ValueError, "k >= 1"),
        (("maxpo",), "4", TypeError, "real number"),
    ],
)
def test_errors(names, k, error, message):
    with pytest.raises(error, match=message):
        integration.register(*names, k=k)


def test_too_few_generations():
    integration.register("maxpo:4")
    with pytest.raises(ValueError, match=r"k.*4(.|\n)*num_generations"):
        advantages("maxpo:4", np.zeros(8, np.float32), 4)
    with pytest.raises(ValueError, match=r"B \* num_generations"):
        advantages("maxpo:4", np.zeros(7, np.float32), 5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_rewards_by_value(dtype):
    integration.register("maxpo:2")
    result = advantages("maxpo:2", np.array([3e9, 1e9, 2e9]).astype(dtype), 3)
    assert result.dtype == np.float32
    assert result.tolist() == [2e9, -1e9, -1e9]


def test_learner_uses_our_advantages_bit_for_bit():
    config = load_config("configs/tunix_lm.py")
    config.updates, config.prompts, config.num_generations = 4, 3, 6
    integration.register(k=3)
    used = []
    cluster = tunix_lm.train(config, "maxpo", lambda *both: used.append(both))
    assert len(used) == 4
    for rewards, got in used:
        assert rewards.shape == (3 * 6,)
        expected = estimators.maxpo(rewards.reshape(3, 6).astype(np.float32), 3)
        np.testing.assert_array_equal(np.ravel(got), np.ravel(expected))
    assert any(got.any() for _, got in used)
    # And it trained on them.
    start = nnx.state(tunix_lm.make_cluster(config).actor_trainer.model, nnx.Param)
    end = nnx.state(cluster.actor_trainer.model, nnx.Param)
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(end), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
