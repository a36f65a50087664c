"""The bandit study's machinery, against what can be enumerated."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maxpo import estimators
from maxpo.runs import load_config
from maxpo.studies import bandit


def small_config(**fields):
    config = load_config("configs/bandit.py")
    config.update(seeds=2, updates=4, evaluate_every=2, variance_batches=4, group_size=3)
    config.task.update(num_contexts=2, num_features=0, num_arms=3)
    config.methods = ("rloo", "grpo", "pkpo_loo_minus_one:k=2", "maxpo:k=2")
    config.update(fields)
    return config


def test_gradient_variance_equals_enumeration():
    """Uniform tabular policy: every batch of a context has the same probability."""
    config = small_config(methods=("reinforce", "maxpo:k=2"), variance_batches=20_000)
    trainer = bandit.make_trainer(config)
    state = trainer.init(trainer.keys)
    arms, n = 3, 3
    for number, name in enumerate(("reinforce", "maxpo")):
        actual = trainer.evaluate(number, trainer.keys, state)["gradient_variance"]
        for seed in range(2):
            task = bandit.make_task(config.task, jax.random.fold_in(trainer.keys[seed], 0))
            expected = 0.0
            for rewards in np.asarray(task.rewards):
                batches = np.array(list(itertools.product(range(arms), repeat=n)))
                if name == "maxpo":
                    advantages = np.asarray(estimators.maxpo(rewards[batches], 2))
                else:
                    advantages = rewards[batches]
                scores = np.eye(arms)[batches] - 1 / arms
                gradients = np.einsum("bn,bnd->bd", advantages, scores) / n
                # Contexts are independent, and the loss is their mean.
                expected += gradients.var(axis=0).sum() / 2**2
            # The relative error of a variance of 20,000 draws is about 1%.
            np.testing.assert_allclose(actual[seed], expected, rtol=0.05)


def test_seeds_are_paired_across_estimators_and_differ_from_each_other():
    trainer = bandit.make_trainer(small_config(methods=("rloo", "maxpo:k=2")))
    state = trainer.init(trainer.keys)
    before = [trainer.evaluate(number, trainer.keys, state)["max_at_k"] for number in (0, 1)]
    np.testing.assert_array_equal(*before)
    assert before[0][0] != before[0][1]


def test_maxpo_at_k_of_one_trains_as_rloo():
    config = small_config(methods=("rloo", "maxpo:k=1"))
    trainer = bandit.make_trainer(config)
    state = trainer.init(trainer.keys)
    chex.assert_trees_all_close(
        *(trainer.advance(number, 4.0, trainer.keys, state) for number in (0, 1)), atol=1e-6
    )


def test_k_adapts_to_each_context_and_to_past_updates_only():
    config = small_config(
        methods=("maxpo:k=adaptive,target=0.75,k_max=3", "maxpo:k=2"),
        group_size=4,
        updates=2,
        evaluate_every=1,
    )
    config.task.update(law="uneven", law_parameter=0.6, num_arms=5)
    trainer = bandit.make_trainer(config)
    before = trainer.init(trainer.keys)
    np.testing.assert_array_equal(jax.vmap(lambda s: s.success.rate([0, 1]))(before), 0.5)
    # Whatever the rewards are, k is 2 as long as nothing else is known: 1 - 0.5^2 = 0.75.
    adaptive, fixed = (trainer.advance(number, 4.0, trainer.keys, before) for number in (0, 1))
    chex.assert_trees_all_close(adaptive, fixed, atol=1e-6)
    assert np.ptp(adaptive.success.successes) > 0
    # The second update has the k of what the first one has counted.
    after = trainer.advance(0, 4.0, trainer.keys, adaptive)
    for seed in range(2):
        key = jax.random.fold_in(trainer.keys[seed], 0)
        task = bandit.make_task(config.task, key)
        counts = jax.tree.map(lambda leaf, seed=seed: leaf[seed], adaptive.success)
        ks = np.clip(np.log(0.25) / np.log1p(-counts.successes / counts.attempts), 1, 3)
        kernel = jax.tree.leaves(adaptive.params)[0][seed]
        policy = task.make_policy(nnx.Rngs(0))
        policy.head.kernel[...] = kernel
        sample_key = jax.random.fold_in(jax.random.fold_in(trainer.keys[seed], 2), 1)
        actions = policy.sample(sample_key, task.observations, 4)
        advantages = estimators.maxpo(task.reward(actions), np.asarray(ks))
        scores = np.eye(5)[actions] - np.asarray(jax.nn.softmax(kernel))[:, None]
        gradient = np.einsum("cn,cna->ca", advantages, scores) / (2 * 4)
        moved = jax.tree.leaves(after.params)[0][seed] - kernel
        np.testing.assert_allclose(moved, 4.0 * gradient, atol=1e-5)
        np.testing.assert_allclose(
            after.success.successes[seed],
            0.9 * counts.successes + task.reward(actions).sum(axis=-1),
            rtol=1e-6,
        )


def test_training_raises_the_objective_it_is_for():
    config = small_config(updates=60, evaluate_every=60, methods=("rloo", "maxpo:k=2"), seeds=8)
    trainer = bandit.make_trainer(config)
    state = trainer.init(trainer.keys)
    before = trainer.evaluate(0, trainer.keys, state)
    for number, metric in ((0, "mean_reward"), (1, "max_at_k")):
        after = trainer.advance(number, 4.0, trainer.keys, state)
        after = trainer.evaluate(number, trainer.keys, after)
        assert np.all(after[metric] > before[metric])


def test_summarise():
    metrics = {name: jnp.array([1.0, 3.0]) for name in bandit.METRICS}
    figures = bandit.summarize(metrics)
    assert figures["entropy"] == 2.0
    assert figures["entropy_sem"] == 1.0


def test_learning_curves_draw_every_estimator():
    row = {"max_at_k": 1.0, "mean_reward": 1.0, "gradient_variance": 1.0, "entropy": 1.0}
    row |= {f"{name}_sem": 0.1 for name in row}
    history = [
        {"step": step, "method": name, **row} for step in (0, 1) for name in ("rloo", "max_rl")
    ]
    figure = bandit.learning_curves(history, 4)
    assert [len(axis.lines) for axis in figure.axes] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"group_size": 2},
            "'maxpo:k=2' with group_size = 2: .*N - 1 = 1",
        ),
        ({"methods": ("maxp0",)}, "expected one of the estimators .* got 'maxp0'"),
        ({"methods": ("rloo", "rloo")}, "expected different ones, got 'rloo' twice"),
        ({"methods": ()}, "methods: expected at least one"),
        ({"methods": ("l_statistic",)}, "l_statistic takes rank weights"),
        ({"methods": ("maxpo:k=0.5",)}, "'maxpo:k=0.5' with group_size = 3: .*k.* 0.5"),
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"updates": 3}, "updates: expected a multiple of evaluate_every = 2, got 3"),
        ({"optimizer": "sdg"}, "optimizer: expected a name of optax, got 'sdg'"),
        ({"eval_k": 0.0}, "eval_k: expected at least 1, got 0.0"),
        ({"task.law": "cauchy"}, "task.law: expected one of gaussian, .* got 'cauchy'"),
        ({"task.name": "maze"}, "task.name: expected contextual or square, got 'maze'"),
        (
            {"methods": ("maxpo:k=adaptive,k_max=2",)},
            "methods: expected a number as k of graded rewards, as task.law=gaussian says",
        ),
        ({"task.law": "uneven", "task.law_parameter": 1.5}, "success rate of at most 1, got 1.5"),
        ({"learning_rate": -1.0}, "learning_rate: expected .* got -1.0"),
        ({"task.num_arms": 0}, "task.num_arms: expected at least 1, got 0"),
    ],
)
def test_config_mistakes(fields, message):
    config = small_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        bandit.check_config(config)
