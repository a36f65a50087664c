"""The maze study's real configs, shrunk, through its binary's own function."""

import json

import chex
import jax
import numpy as np
import pytest

from configs import maze as maze_config
from experiments import maze
from maxpo.runs import UsageError, load_config, read_metrics, read_timings


def shrink(config):
    config.update(seeds=2, group_size=3, mazes=2, updates=4, evaluate_every=2, eval_k=2)
    config.methods = ("grpo:entropy=sweep", "maxpo:k=2")
    config.sweep.update(
        learning_rates=(0.003, 0.01), entropy_coefficients=(0.01,), seeds=1, updates=2
    )
    config.evaluation.update(mazes=2, samples=4, curve_samples=4)
    config.task.horizon = 6
    config.policy.hidden = (3,)
    if config.task.name == "maze":
        config.task.size = 7
    return config


@pytest.fixture
def config(monkeypatch):
    """The default one. Its study has no state, so all runs may share what is compiled."""
    monkeypatch.setattr(maze.maze, "make_study", lambda _: shared_study())
    return shrink(load_config("configs/maze.py"))


studies = []


def shared_study(make=maze.maze.make_study):
    if not studies:
        studies.append(make(shrink(load_config("configs/maze.py"))))
    return studies[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was never stopped, and its summary."""
    folder = tmp_path_factory.mktemp("maze") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maze.maze, "make_study", lambda _: shared_study())
        return folder, maze.train_and_evaluate(shrink(load_config("configs/maze.py")), folder)


@pytest.mark.slow
def test_a_run_ends_with_a_table_and_figures(config, whole, capsys):
    folder, summary = whole
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert list(summary["table"]) == ["before training", "grpo entropy=sweep", "maxpo k=2"]
    for row in summary["table"].values():
        figures = [value for name, value in row.items() if name not in ("learning rate", "bonus")]
        assert np.all(np.isfinite(figures))
        assert row["max@1"] <= row["max@2"] <= row["max@4"] <= summary["optimal_return"]
    assert summary["settings"]["grpo entropy=sweep"]["entropy_coefficient"] == 0.01
    assert summary["settings"]["maxpo k=2"]["learning_rate"] in config.sweep.learning_rates
    history = read_metrics(folder)
    assert [row["update"] for row in history if row.get("update") is not None][::2] == [0, 2, 4]
    assert [row["step"] for row in read_timings(folder)] == [2, 4, 6]
    for name in ("curves", "learning_curves", "trajectories"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
    assert maze.train_and_evaluate(config, folder) == summary
    printed = capsys.readouterr().out
    assert "max@2 minus maxpo" in printed
    assert "trajectories.png" in printed


@pytest.mark.slow
def test_it_resumes_bit_for_bit(config, whole, tmp_path, monkeypatch):
    class InterruptedRunError(Exception):
        pass

    # After the sweep, after a checkpoint, before the last, and before the summary is written.
    for method, when in (("save", 1), ("save", 1), ("save", 0), ("figure", 0)):
        original = getattr(maze.runs.Run, method)

        def interrupt(self, *args, original=original, when=when):
            if when:
                original(self, *args)
            raise InterruptedRunError

        with monkeypatch.context() as patch:
            patch.setattr(maze.runs.Run, method, interrupt)
            with pytest.raises(InterruptedRunError):
                maze.train_and_evaluate(config, tmp_path)
    folder, summary = whole
    assert maze.train_and_evaluate(config, tmp_path) == summary
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_another_config_and_a_bad_one_are_refused(config, whole, tmp_path):
    config.max_gradient_norm = 0.5
    with pytest.raises(UsageError, match=r"max_gradient_norm: 1\.0 -> 0\.5"):
        maze.train_and_evaluate(config, whole[0])
    config.group_size = 2
    with pytest.raises(ValueError, match="N - 1 = 1"):
        maze.train_and_evaluate(config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_an_environment_of_others_is_trained_in():
    pytest.importorskip("xminigrid")
    config = shrink(load_config("configs/maze.py:xminigrid"))
    study, keys = maze.maze.make_study(config), maze.maze.run_keys(config)
    settings = maze.maze.make_settings([0.01] * config.seeds, 0.01)
    method = study.methods["grpo entropy=sweep"]
    state = study.advance(method, settings, keys, study.init(keys))
    assert state.step.tolist() == [2, 2]
    chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize("variant", maze_config.VARIANTS)
def test_every_variant_is_a_study(variant):
    """As it is, unshrunk, and traced only: nothing is compiled or trained."""
    config = load_config(f"configs/maze.py:{variant}")
    if config.task.name == "xminigrid":
        pytest.importorskip("xminigrid")
    maze.maze.check_config(config)

    def run():
        study, keys = maze.maze.make_study(config), maze.maze.run_keys(config)
        settings = maze.maze.make_settings([0.01] * config.seeds, 0.0)
        state = study.init(keys)
        after = study.advance(study.methods["rloo"], settings, keys, state)
        return state, after, study.curves(study.test, keys, state)

    state, after, curves = jax.eval_shape(run)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    last = 64 if variant in ("full", "xminigrid") else 256
    assert maze.maze.curve_ks(config)[-1] == last
    assert curves["max_at_k"].shape == (config.seeds, last.bit_length())  # 1, 2, 4, ..


def test_unknown_variants_are_named():
    with pytest.raises(UsageError, match=r"variants default.*; got 'defualt'"):
        load_config("configs/maze.py:defualt")
