"""The study of the baseline's weight: its sampling, its judgment and its run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_oracles import enumerated

from experiments import baseline_weight as experiment
from maxpo import estimators
from maxpo.runs import UsageError, load_config
from maxpo.studies.variance import baseline_weight as study
from maxpo.studies.variance import count_baselines
from maxpo.studies.variance.moments import Bandits
from maxpo.studies.variance.points import two_reward_bandits

REWARDS = np.array([0.2, 1.7, -0.4])
RULE = study.Rule(decay=0.95, caution=2.0, prompts=64, chains=8, updates=50)


@pytest.mark.parametrize("logits", [[0.3, -0.5, 0.9], [7.0, 0.0, -1.0]], ids=["spread", "sure"])
def test_quadratic_equals_enumeration(logits):
    """V(0), V(1) and V(1/2) within 4 standard errors, and the signal exactly."""
    logits, n, k = np.array(logits), 4, 2
    bandits = Bandits(*(jnp.tile(jnp.float32(x), (64, 1)) for x in (logits, REWARDS)))
    found = study.inner_products(
        jax.random.key(1), bandits, jnp.array([1.0, k]), group_size=n, groups=2048
    )
    dd, dh, hh, signal = (np.asarray(x, np.float64)[:, 1] for x in found)
    for weight in (0.0, 1.0, 0.5):
        trace, exact_signal = enumerated(
            lambda r, w=weight: estimators.blended(r, k, w), logits, REWARDS, n
        )
        v = (dd - 2 * weight * dh + weight**2 * hh).mean(axis=1) - signal
        assert abs(v.mean() - trace) < 4 * v.std(ddof=1) / 8
        np.testing.assert_allclose(signal, exact_signal, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_best_weight_equals_the_closed_form_on_many_arms(k):
    n, rate = 8, 0.3
    found = study.inner_products(
        jax.random.key(2),
        two_reward_bandits(4000, rate, 32),
        jnp.array([float(k)]),
        group_size=n,
        groups=1024,
    )
    row = study.summarize(*(np.asarray(x, np.float64)[:, 0] for x in found), [(0, 0), (0, 0)])
    exact = count_baselines.best_weight(group_size=n, k=k, success_rate=rate)
    assert row["resolved"]
    assert abs(row["best"] - exact) < 4 * row["best_sem"] + 0.005  # Some samples share an arm.
    assert row["rule"] == pytest.approx(row["v0"] / min(row["v0"], row["v1"]))


def synthetic(best, noise, count=4096):
    """Moments of a regime with w* = best, E|H|^2 = 1 and V(0) = 1."""
    rng = np.random.default_rng(0)
    square = rng.exponential(size=(8, count))
    cross = best * square + noise * rng.normal(size=square.shape)
    return np.ones_like(cross), cross, square, np.zeros(8)


@pytest.mark.parametrize("best", [0.0, 0.3, 1.2])
def test_past_weights_tend_to_the_best_in_the_interval(best):
    _, cross, square, _ = synthetic(best, 0.1)
    mean, mean_square = study.past_weights(
        jax.random.key(0), jnp.asarray(cross).ravel(), jnp.asarray(square).ravel(), rule=RULE
    )
    assert mean == pytest.approx(np.clip(best, 0, 1), abs=0.02)
    assert mean_square >= mean**2 - 1e-6


def test_the_rule_is_judged_on_the_other_half():
    """A weight that is right for one half and ruinous for the other."""
    square = np.ones((4, 10))
    cross = np.concatenate([np.full((4, 5), 0.8), np.full((4, 5), 0.2)], axis=1)
    moments = np.full((4, 10), 2.0), cross, square, np.zeros(4)
    fitted = study.summarize(*moments, [(0.8, 0.64), (0.2, 0.04)])
    swapped = study.summarize(*moments, [(0.2, 0.04), (0.8, 0.64)])
    v = {w: 2 - 2 * w * c + w**2 for w, c in ((0.8, 0.2), (0.2, 0.8))}
    assert fitted["rule"] == pytest.approx(sum(v.values()) / 2 / 2)
    assert fitted["rule"] > 1 > swapped["rule"]
    assert fitted["headroom"] == pytest.approx((2 - 0.25) / 2)
    assert fitted["rule_weight"] == 0.5


def test_rows_at_an_end_count_neither_above_nor_below():
    base = {"resolved": True, "headroom": 1.0, "k": 1, "group_size": 4, "sharing": 0.1}
    rows = [
        base | {"rule": 1 + 1e-9, "rule_sem": 0.0},
        base | {"rule": 1.02, "rule_sem": 0.008},
        base | {"rule": 0.9, "rule_sem": 0.01, "headroom": 0.89},
        base | {"rule": 2.0, "rule_sem": 0.01, "resolved": False},
    ]
    rows = [{"best": 0.4} | row for row in rows]
    counted = study.counts(rows)
    assert counted["all"] == 4
    assert counted["resolved"] == counted["V(0) < V(1)"] == 3
    assert counted["rule above by 2 s.e."] == counted["rule above by 2 s.e. and 1%"] == 1
    assert counted["rule above by 3 s.e."] == 0
    assert counted["rule below by 3 s.e."] == counted["rule below by 3 s.e. and 5%"] == 1
    assert counted["not resolved, rule above by 2 s.e."] == 1


@pytest.mark.slow
def test_experiment_runs_resumes_and_reports(tmp_path, capsys, monkeypatch):
    config = load_config("configs/baseline_weight.py:quick")
    config.certificate.pairs = ((4, 2),)
    config.bandits, config.groups = 4, 32
    whole = experiment.train_and_evaluate(config, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "summary.json").read_text()) == whole
    assert len(whole["cells"]) == whole["counts"]["all"] == 16
    assert whole["certificates"][0]["at least"] > 1
    assert all(row["largest |z|"] < 6 for row in whole["agreement"])
    assert (tmp_path / "whole" / "baseline_weight.png").stat().st_size > 10_000
    assert "past updates" in capsys.readouterr().out

    class InterruptedRunError(Exception):
        pass

    def interrupt(self, step, state):
        save(self, step, state)
        raise InterruptedRunError

    save = experiment.runs.Run.save
    with monkeypatch.context() as patch:
        patch.setattr(experiment.runs.Run, "save", interrupt)
        with pytest.raises(InterruptedRunError):
            experiment.train_and_evaluate(config, tmp_path / "parts")
    assert experiment.train_and_evaluate(config, tmp_path / "parts") == whole
    assert experiment.train_and_evaluate(config, tmp_path / "parts") == whole  # Finished: a report.
    assert capsys.readouterr().out.count("at least") == 2


def test_bad_configs():
    for change, message in (
        ({"groups": 7}, "groups: expected an even number"),
        ({"success_rates": (0.0, 0.5)}, "success_rates: expected rates between 0 and 1"),
        ({"group_sizes": (2,)}, "group_sizes: expected at least 3, got 2"),
        ({"num_arms": ()}, "num_arms: expected at least one value"),
    ):
        config = load_config("configs/baseline_weight.py:quick")
        config.update(change)
        with pytest.raises(ValueError, match=message):
            study.check_config(config)
    config = load_config("configs/baseline_weight.py:quick")
    config.rule.decay = 1.0
    with pytest.raises(ValueError, match=r"rule\.decay: expected a number in \[0, 1\)"):
        study.check_config(config)
    with pytest.raises(UsageError, match="variants default"):
        load_config("configs/baseline_weight.py:defualt")


def test_the_default_grid_has_every_law_and_policy():
    config = load_config("configs/baseline_weight.py")
    study.check_config(config)
    assert len(study.make_jobs(config)) == (6 + 7 + 7) * 2 * 4
