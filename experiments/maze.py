"""Compares estimators in mazes whose best goal is far away and hard to find.

First a sweep chooses each method's learning rate on validation mazes, then fresh seeds train with
it, and held-out mazes give the max@k and pass@k curves; see configs/maze.py for the variants.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import maze, maze_figures
from maxpo.training import TrainState

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, with a table by method."""
    maze.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        study = maze.make_study(config)
        return _finish(run, config, study, _train(run, config, study))


def _train(run: runs.Run, config: ConfigDict, study: maze.Study) -> dict[str, TrainState]:
    """Does the updates that are left, first those of the sweep; returns the state of each method.

    A step is an update of all policies that train side by side.
    """
    keys, sweep_keys = maze.run_keys(config), maze.sweep_keys(config)
    grid = maze.sweep_settings(config)
    swept, every = config.sweep.updates, config.evaluate_every
    initial: dict[str, Any] = {
        "sweep": {tried: study.init(sweep_keys) for tried in grid},
        "train": {name: study.init(keys) for name in study.methods},
    }
    state, start = run.restore(initial)
    if not swept and not start:
        _log_held_out(run, config, study, state["train"], 0)
    settings: dict[str, maze.Settings] = {}
    for step in runs.steps(start, swept + config.updates, every=every):
        if step > swept and not settings:
            best = maze.best_settings(config, runs.read_metrics(run.folder))
            settings = {
                name: maze.make_settings([rate] * config.seeds, value)
                for name, (rate, value) in best.items()
            }
        began = time.perf_counter()
        # Nothing but the program goes to the device, and nothing comes back. Methods do not wait
        # for each other.
        with (
            jax.transfer_guard_host_to_device("disallow"),
            jax.transfer_guard_device_to_host("disallow"),
        ):
            if step <= swept:
                for tried in grid:
                    state["sweep"][tried] = study.advance(
                        study.methods[tried[0]], grid[tried], sweep_keys, state["sweep"][tried]
                    )
            else:
                for name in study.methods:
                    state["train"][name] = study.advance(
                        study.methods[name], settings[name], keys, state["train"][name]
                    )
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        episodes = every * config.mazes * config.group_size
        trained = len(grid) * len(sweep_keys) if step <= swept else len(settings) * len(keys)
        steps = episodes * trained * study.environment.horizon
        run.log_timings(step, {"seconds": seconds, "env_steps_per_second": steps / seconds})
        if step == swept:
            _log_sweep(run, config, study, state["sweep"], step)
        if step >= swept:
            _log_held_out(run, config, study, state["train"], step)
        run.save(step, state)
    return state["train"]


def _log_sweep(
    run: runs.Run,
    config: ConfigDict,
    study: maze.Study,
    states: dict[tuple[str, float], TrainState],
    step: int,
) -> None:
    """Logs how good each setting of the sweep is on the validation mazes."""
    keys = maze.sweep_keys(config)
    scores = {
        tried: study.evaluate(study.validation, keys, trained)["max_at_k"]
        for tried, trained in states.items()
    }
    for name, value in maze.sweep_settings(config):
        by_rate = np.reshape(scores[name, value], (len(config.sweep.learning_rates), -1))
        row = {"method": name, "entropy_coefficient": value, "scores": by_rate}
        run.log(step, {"phase": "sweep", **row})


def _log_held_out(
    run: runs.Run, config: ConfigDict, study: maze.Study, states: dict[str, TrainState], step: int
) -> None:
    """Logs how good each method is on the held-out mazes."""
    keys = maze.run_keys(config)
    metrics = {name: study.evaluate(study.test, keys, states[name]) for name in study.methods}
    for name, by_seed in metrics.items():
        figures = maze.summarize(by_seed)
        runs.check_finite(step, {f"parameters of {name}": states[name].params})
        row = {"phase": "train", "update": step - config.sweep.updates, "method": name, **figures}
        run.log(step, row)


def _finish(
    run: runs.Run, config: ConfigDict, study: maze.Study, states: dict[str, TrainState]
) -> dict[str, Any]:
    """Ends the run, from what is saved and logged: a restart may find the training done."""
    keys, ks = maze.run_keys(config), maze.curve_ks(config)
    policies = {maze_figures.BEFORE: study.init(keys)}
    policies |= {name: states[name] for name in study.methods}
    curves = {name: study.curves(study.test, keys, trained) for name, trained in policies.items()}
    figures = {name: maze.summarize_curves(curve, ks) for name, curve in curves.items()}
    optimal = jax.vmap(study.environment.optimal_return)(study.test)
    optimum = None if optimal is None else float(jnp.mean(optimal))
    history = runs.read_metrics(run.folder)
    training = [row for row in history if row["phase"] == "train"]
    run.figure("curves", lambda: maze_figures.curves(figures, ks, config.eval_k, optimum))
    run.figure("learning_curves", lambda: maze_figures.learning_curves(training, config.eval_k))
    if config.task.name == "maze":
        run.figure("trajectories", lambda: maze_figures.trajectories(study, states, keys))
    best = maze.best_settings(config, history)
    summary = {
        "optimal_return": optimum,
        "settings": {
            name: {"learning_rate": rate, "entropy_coefficient": value}
            for name, (rate, value) in best.items()
        },
        "curves": figures,
    }
    return run.finish(summary, table=maze.make_table(config, curves, best, training))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/maze.py")
