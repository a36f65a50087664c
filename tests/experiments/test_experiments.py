"""Every real config, shrunk, through its binary's own function."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import bandit, centering, estimator_speed, results, step_sizes
from maxpo import estimators
from maxpo.methods import needs_only_k, parse_method
from maxpo.runs import UsageError, load_config, read_metrics


def shrink(config):
    config.update(seeds=2, updates=4, evaluate_every=2, variance_batches=2)
    config.k_updates = min(config.k_updates, 3)
    k = "8->1" if config.k_updates else "4"
    config.methods = (f"pkpo:k={k}", f"maxpo:k={k}")  # Each costs compile time.
    config.task.num_contexts = min(config.task.num_contexts, 2)
    return config


def labels(config):
    return tuple(parse_method(spec).label for spec in config.methods)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["default", "bernoulli", "uneven", "heavy_tailed", "anneal", "square"]
)
def test_bandit(variant, tmp_path, capsys):
    config = shrink(load_config(f"configs/bandit.py:{variant}"))
    summary = bandit.train_and_evaluate(config, tmp_path)
    assert tuple(summary) == labels(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for figures in summary.values():
        assert {
            "max_at_k",
            "max_at_k_sem",
            "mean_reward",
            "gradient_variance",
            "entropy",
            "updates_per_second",
        } <= set(figures)
        assert all(np.isfinite(value) for value in figures.values())
        assert figures["max_at_k"] >= figures["mean_reward"]
    history = read_metrics(tmp_path)
    assert [row["step"] for row in history if row["method"] == labels(config)[1]] == [0, 2, 4]
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "maxpo" in printed
    assert "learning_curves.png" in printed
    assert bandit.train_and_evaluate(config, tmp_path) == summary


@pytest.mark.slow
def test_bandit_takes_every_estimator(tmp_path):
    config = shrink(load_config("configs/bandit.py:quick"))
    names = filter(needs_only_k, estimators.names())
    specs = [
        f"{name}:k=2" if "k" in inspect.signature(estimators.get(name)).parameters else name
        for name in names
    ]
    config.methods = (*specs, "blended:k=2,weight=0.5")
    config.task.update(law="bernoulli", law_parameter=0.3)  # For those of 0/1 rewards.
    assert tuple(bandit.train_and_evaluate(config, tmp_path)) == labels(config)


@pytest.mark.slow
def test_bandit_resumes_bit_for_bit(tmp_path, monkeypatch):
    config = shrink(load_config("configs/bandit.py:quick"))
    whole = bandit.train_and_evaluate(config, tmp_path / "whole")

    class InterruptedRunError(Exception):
        pass

    # After the first checkpoint, after the last one, and before the summary is written.
    for method, when in (("save", 1), ("save", 1), ("figure", 0)):
        original = getattr(bandit.runs.Run, method)

        def interrupt(self, *args, original=original, when=when):
            if when:
                original(self, *args)
            raise InterruptedRunError

        with monkeypatch.context() as patch:
            patch.setattr(bandit.runs.Run, method, interrupt)
            with pytest.raises(InterruptedRunError):
                bandit.train_and_evaluate(config, tmp_path / "parts")
    parts = bandit.train_and_evaluate(config, tmp_path / "parts")
    for name in labels(config):
        for figure, value in whole[name].items():
            assert figure == "updates_per_second" or parts[name][figure] == value
    metrics = [(tmp_path / folder / "metrics.jsonl").read_bytes() for folder in ("whole", "parts")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_no_figure_costs_a_run(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(Figure, "savefig", fail)
    config = shrink(load_config("configs/bandit.py:quick"))
    summary = bandit.train_and_evaluate(config, tmp_path / "bandit")
    assert json.loads((tmp_path / "bandit" / "summary.json").read_text()) == summary
    # Nor one that cannot even be laid out.
    config = load_config("configs/estimator_speed.py:quick")
    config.scaling_rewards, config.scaling_sizes = 2**10, (2**4, 2**6)
    config.groups, config.group_sizes = (16,), (64,)
    monkeypatch.setattr(estimator_speed.estimator_speed, "scaling_figure", fail)
    assert estimator_speed.train_and_evaluate(config, tmp_path / "speed")
    assert (tmp_path / "speed" / "summary.json").exists()
    printed = capsys.readouterr().err
    assert printed.count("RuntimeError: no fonts") == 2
    assert printed.count("warning: the figure") == 2
    steps = [row["step"] for row in read_metrics(tmp_path / "speed")]
    assert sorted(set(steps)) == [1, 2]  # Shapes that are done.
    assert steps == sorted(steps)


def test_step_sizes_labels_each_bandit_with_its_own_k(tmp_path, monkeypatch):
    config = load_config("configs/step_sizes.py:quick")
    config.bandits = ("default", "anneal", "bernoulli")
    monkeypatch.setattr(
        step_sizes.step_sizes,
        "final_objectives",
        lambda study, rates: {name: np.ones((len(rates), 4)) for name in study.methods},
    )
    given = []
    monkeypatch.setattr(
        step_sizes.step_sizes, "step_size_figure", lambda *arguments: given.append(arguments[2])
    )
    step_sizes.train_and_evaluate(config, tmp_path / "own")
    assert given.pop() == {"default": 4.0, "anneal": 8.0, "bernoulli": 4.0}
    config.eval_k = 2.0
    step_sizes.train_and_evaluate(config, tmp_path / "other")
    assert given.pop() == {"default": 2.0, "anneal": 2.0, "bernoulli": 2.0}


def test_bandit_refuses_another_config_and_a_bad_one(tmp_path):
    config = shrink(load_config("configs/bandit.py:quick"))
    bandit.train_and_evaluate(config, tmp_path / "run")
    config.learning_rate = 0.5
    with pytest.raises(UsageError, match=r"learning_rate: 4\.0 -> 0\.5"):
        bandit.train_and_evaluate(config, tmp_path / "run")
    config.group_size = 4
    with pytest.raises(ValueError, match="N - 1 = 3"):
        bandit.train_and_evaluate(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_unknown_variants_are_named():
    for name in ("bandit", "estimator_speed", "step_sizes"):
        with pytest.raises(UsageError, match=r"variants default.*; got 'defualt'"):
            load_config(f"configs/{name}.py:defualt")


def test_estimator_speed(tmp_path):
    config = load_config("configs/estimator_speed.py:quick")
    config.scaling_rewards, config.scaling_sizes = 2**10, (2**4, 2**6)
    config.groups, config.group_sizes = (16,), (64,)
    summary = estimator_speed.train_and_evaluate(config, tmp_path)
    assert list(summary) == ["16 x 64", "64 x 16"]
    assert all(row["maxpo / sort"] > 0 for row in summary.values())
    assert (tmp_path / "estimator_speed.png").exists()
    config.k = 16
    config.group_sizes = (16,)
    with pytest.raises(ValueError, match="2 <= k <= 15, got repeats = 2 and k = 16"):
        estimator_speed.train_and_evaluate(config, tmp_path / "bad")


def test_step_sizes(tmp_path):
    config = load_config("configs/step_sizes.py:quick")
    summary = step_sizes.train_and_evaluate(config, tmp_path)
    assert list(summary) == ["default rloo", "default maxpo k=4"]
    assert all(np.isfinite(value) for row in summary.values() for value in row.values())
    assert summary["default maxpo k=4"]["minus_maxpo"] == 0
    assert (tmp_path / "step_sizes.png").exists()
    config.common = 3.0
    with pytest.raises(ValueError, match=r"common: expected one of \(1\.0, 4\.0\), got 3\.0"):
        step_sizes.train_and_evaluate(config, tmp_path / "bad")


@pytest.mark.slow
def test_centering(tmp_path, capsys):
    config = load_config("configs/centering.py:quick")
    config.update(seeds=6, groups=16, evaluations=4, test_contexts=2, probes=2, probe_groups=8)
    config.frozen.update({"seeds": 1, "groups": 8, "updates": 20, "shown": 5})
    config.base.update(num_arms=4, num_features=2, hidden_states=2, group_size=4, k=2)
    config.grid.groups_per_update = (1,)
    config.points = ({"law": "gaussian"},)
    summary = centering.train_and_evaluate(config, tmp_path)
    assert len(summary["cells"]) == 3
    cell = summary["cells"][0]
    assert {"success_rate", "k", "group_size", "groups_per_update", "difference"} <= set(cell)
    for figure in ("variance_ratio", "predicted_ratio", "samples_ratio"):
        assert {figure, f"{figure}_sem"} <= set(cell)
    for name in config.estimators:
        figures = cell["estimators"][name]
        assert 0 <= figures["max_at_k"] <= 1
        assert figures["step_size"] in config.step_sizes.sgd
    assert {"rank_correlation", "slope", "slope_sem"} <= set(summary["prediction"])
    assert [row["b2"] for row in summary["adam"]] == [0.99]
    assert "adam, N=4, k=2, G=1, 30% right" in capsys.readouterr().out
    for name in ("centering", "centering_gains", "centering_adam"):
        assert (tmp_path / f"{name}.png").exists()
    assert centering.train_and_evaluate(config, tmp_path) == summary


@pytest.mark.slow
def test_results_gathers_figures_and_takes_up_finished_studies(tmp_path, capsys):
    config = load_config("configs/results.py:quick")
    config.studies = ("step_sizes:quick", "estimator_speed:quick")
    first = results.train_and_evaluate(config, tmp_path)
    assert list(first) == list(config.studies)
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == [
        "estimator_speed-quick-estimator_speed.png",
        "step_sizes-quick-step_sizes.png",
    ]
    assert results.train_and_evaluate(config, tmp_path) == first
    assert "nothing left to do" in capsys.readouterr().err


def test_results_names_every_study_before_it_runs_one(tmp_path):
    config = load_config("configs/results.py")
    config.studies = ("bandit:quick", "bandit:none")
    with pytest.raises(UsageError, match="got 'none'"):
        results.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_results_covers_every_experiment():
    studies = {spec.partition(":")[0] for spec in load_config("configs/results.py").studies}
    # Some are no studies: they import, judge and export models, and report. The figures of tunix_lm
    # are an example's, and its extra holds other packages back. Those of chaos are of minutes in
    # which nothing else runs, and stand in docs/reliability.md.
    others = {"__init__", "_arguments", "evaluate", "export", "import_gguf", "report", "results"}
    others |= {"tunix_lm", "chaos"}
    files = {path.stem for path in Path("experiments").glob("*.py")} - others
    assert studies == files
