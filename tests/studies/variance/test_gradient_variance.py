"""The gradient variance study as a whole: its config, cells, figures and the run around them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gradient_variance as experiment
from maxpo import losses, runs
from maxpo.studies.variance import figures as variance_figures
from maxpo.studies.variance import gradient_variance, pkpo_toy
from maxpo.studies.variance import points as variance_points

CONFIG = "configs/gradient_variance.py"
FIGURES = ("unbiasedness", "sweeps", "regime_map", "pkpo_toy")


@pytest.mark.parametrize("variant", ["default", "quick"])
def test_the_real_configs_are_valid(variant):
    config = runs.load_config(f"{CONFIG}:{variant}")
    gradient_variance.check_config(config)
    points = variance_points.make_points(config)
    swept = [value for values in config.sweep.values() for value in values]
    assert len(points) == len(swept) + len(config.points)
    assert len(gradient_variance.make_jobs(config)) > len(points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimators": ("maxpo", "maxpoo")}, "expected one of the estimators"),
        ({"estimators": ("maxpo", "pkpo")}, "pkpo_loo_minus_one and maxpo among them"),
        ({"estimators": ("maxpo", "maxpo", "pkpo_loo_minus_one")}, "expected different names"),
        ({"batches": 1}, "batches: expected at least 2, got 1"),
        ({"base.k": 16}, r"k: expected 1 <= k <= group_size - 1 = 15.*got 16"),
        ({"base.law": "cauchy"}, "law: expected one of gaussian, bernoulli, pareto; got 'cauchy'"),
        ({"base.arms": "random"}, "arms: expected quantiles or drawn; got 'random'"),
        ({"base.law_parameter": 0.0}, "law_parameter: expected more than 0, got 0.0"),
        ({"base.logit_noise": -1.0}, "logit_noise: expected at least 0, got -1.0"),
        ({"sweep.num_arms": (1,)}, "sweep.num_arms=1: num_arms: expected at least 2, got 1"),
        ({"map.success_rate": (0.5, 1.0)}, "expected rates between 0 and 1, got 1.0"),
        ({"map.num_arms": ()}, "map.num_arms: expected at least one value"),
        ({"toy.k": 5}, r"toy.k: expected 1 <= k <= N - 1 = 4, got \(5,\)"),
        ({"unbiasedness.group_size": 20}, "expected 2..8, because 3\\^N groups"),
        ({"unbiasedness.ks": (7,)}, "unbiasedness.ks: expected 2 <= k <= N = 6"),
    ],
)
def test_a_config_without_sense_is_refused_before_any_work(changes, message, tmp_path):
    config = runs.load_config(CONFIG)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        experiment.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_axis_is_refused():
    config = runs.load_config(CONFIG)
    with config.unlocked():
        config.sweep.temperature = (1.0,)
    with pytest.raises(ValueError, match=r"expected fields of base .*; got temperature"):
        gradient_variance.check_config(config)


def fields(**changes):
    return {**runs.load_config(CONFIG).base.to_dict(), **changes}


def test_arms_at_quantiles():
    key = jax.random.key(0)
    for rate in (0.02, 0.3):
        point = fields(law="bernoulli", law_parameter=rate)
        rewards = variance_points.make_bandits(key, point, 2).rewards
        np.testing.assert_array_equal(rewards.sum(axis=1), 100 * rate)
    gaussian = np.asarray(variance_points.make_bandits(key, fields(num_arms=1000), 2).rewards)
    np.testing.assert_array_equal(gaussian[0], gaussian[1])
    np.testing.assert_allclose(gaussian[0], -gaussian[0, ::-1], atol=1e-4)
    np.testing.assert_allclose(gaussian.std(), 1, atol=0.01)
    pareto = variance_points.make_bandits(key, fields(law="pareto", law_parameter=2.0), 1).rewards
    np.testing.assert_allclose(np.mean(pareto > 2), 2.0**-2)


def test_drawn_arms_follow_the_law_and_differ():
    point = fields(arms="drawn", num_arms=1000, law_parameter=2.0)
    rewards = np.asarray(variance_points.make_bandits(jax.random.key(0), point, 64).rewards)
    assert len({row[0] for row in rewards}) == 64
    # 64000 draws: the errors of mean and standard deviation are 0.008 and 0.006.
    np.testing.assert_allclose(rewards.mean(), 0, atol=0.03)
    np.testing.assert_allclose(rewards.std(), 2, atol=0.03)


def test_policies_from_uniform_to_peaked():
    key = jax.random.key(0)
    entropies = [
        float(losses.entropy(bandits.logits).mean())
        for bandits in (
            variance_points.make_bandits(key, fields(**change), 8)
            for change in ({}, {"logit_noise": 2.0}, {"logit_noise": 6.0}, {"logit_tilt": 4.0})
        )
    ]
    np.testing.assert_allclose(entropies[0], np.log(100), rtol=1e-6)
    assert entropies[0] > entropies[1] > entropies[2]
    assert entropies[3] < 0.5 * entropies[0]
    tilted = variance_points.make_bandits(key, fields(logit_tilt=4.0), 1)
    assert jnp.argmax(tilted.logits) == jnp.argmax(tilted.rewards)


def test_two_reward_bandits_hold_the_success_rate():
    for arms in (2, 5, 1000):
        logits, rewards = variance_points.two_reward_bandits(arms, 0.1, 3)
        p = jax.nn.softmax(logits)
        np.testing.assert_allclose(jnp.sum(p * rewards, axis=-1), 0.1, rtol=1e-5)
        assert len(np.unique(np.asarray(p[0]))) == 2


def published(name, success_rate, right):
    return gradient_variance.exact_variance(
        name, 4, group_size=16, success_rate=success_rate, right_arms=right, wrong_arms=100 - right
    )


def test_the_table_of_the_theory_is_reproduced_where_it_is_determined():
    """Its rows of 0/1 rewards, which were sampled: within 2.5%."""
    names = ("pkpo_loo_minus_one", "maxpo", "pkpo_loo", "pkpo")
    np.testing.assert_allclose(
        [published(name, 0.3, 30) for name in names], [0.0442, 0.0341, 0.0381, 0.607], rtol=0.025
    )
    np.testing.assert_allclose(
        [published(name, 0.02, 2) for name in names], [0.0166, 0.0175, 0.0183, 0.0321], rtol=0.025
    )


@pytest.mark.slow
def test_the_quick_study(tmp_path, capsys):
    config = runs.load_config(f"{CONFIG}:quick")
    summary = experiment.train_and_evaluate(config, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    printed = capsys.readouterr().out
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert f"{name}.png" in printed
    assert "pkpo_loo_minus_one, mean-centered" in printed

    cells = summary["cells"]
    for row in cells["sweep"] + cells["point"]:
        assert set(row["variance"]) == set(row["variance_error"]) == set(config.estimators)
        if row["k"] == 1:
            assert row["variance"]["maxpo"] == pytest.approx(row["variance"]["rloo"], rel=1e-3)
    assert len(cells["map"]) == 2 * 3 * 7
    exact = {
        (r["num_arms"], r["success_rate"], r["k"]): r["exact_log2_ratio"] for r in cells["map"]
    }
    assert exact[30, 0.9, 2] < -1  # Many arms, high success: MaxPO wins,
    assert exact[2, 0.9, 2] > 1  # in one dimension it loses.

    # The errors are right: estimates are one standard error away from the closed forms.
    for kind in ("variance", "map", "toy"):
        assert summary["agreement"][kind]["figures"] >= 8
        assert 0.4 < summary["agreement"][kind]["rms_z"] < 1.8

    again = experiment.train_and_evaluate(config, tmp_path)
    assert again == summary
    assert "pkpo_loo_minus_one, mean-centered" in capsys.readouterr().out


def few_jobs():
    """A part of the quick study, in shapes that are compiled for it anyway."""
    config = runs.load_config(f"{CONFIG}:quick")
    for axis in ("success_rate", "tail_exponent", "logit_noise", "logit_tilt", "group_size"):
        config.sweep[axis] = ()
    config.map.num_arms, config.map.success_rate = (2,), (0.5,)
    config.toy.thetas, config.toy.ks = (1.0,), (4,)
    return config


@pytest.mark.slow
def test_a_run_that_is_interrupted_measures_the_same(tmp_path, monkeypatch):
    config = few_jobs()
    whole = experiment.train_and_evaluate(config, tmp_path / "whole")
    save = runs.Run.save

    def interrupted(self, step, state):
        save(self, step, state)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.train_and_evaluate(config, tmp_path / "resumed")
    resumed = experiment.train_and_evaluate(config, tmp_path / "resumed")
    assert resumed == whole
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed")]
    assert files[0] == files[1]


def test_figures_show_the_estimators_that_there_are():
    """Others than the usual ones, and points that are not resolved."""
    names = ("canonical", "pkpo_loo_minus_one", "maxpo")
    figures = {
        metric: dict.fromkeys(names, 1.0)
        for metric in ("variance", "variance_error", "log2_ratio", "log2_ratio_error")
    }
    rows = [
        {"axis": "num_arms", "value": arms, "shown": True, "resolved": arms < 8, **figures}
        for arms in (2, 4, 8)
    ]
    panel = variance_figures.sweeps(rows).axes[0]
    assert [len(line.get_xdata()) for line in panel.get_lines()] == [2, 2]
    curve = {"theta": 1.0, "k": 4}
    for metric in ("objective", "derivative"):
        curve |= {metric: 0.0, f"{metric}_error": 1.0}
    toy = {"theta": 1.0, "k": 4, "group_size": 5, **figures}
    legend = pkpo_toy.figure([curve], [toy]).axes[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(names)
