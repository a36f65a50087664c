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


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, a dict of figures by method."""
    maze.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        study = maze.make_study(config)
        rates = config.sweep.learning_rates
        sweep_keys, sweep_rates = maze.keys(config, sweep=True)
        keys, _ = maze.keys(config, sweep=False)
        # The number of the chosen learning rate, -1 before the sweep has been there.
        chosen = {name: np.array(-1) for name in study.methods}
        states = {name: study.init(keys) for name in study.methods}
        state, start = run.restore({"chosen": chosen, "train": states})
        seconds = 0.0

        # A step is an update of all policies that train at once: first the sweep's, method by
        # method, then the others', all methods side by side.
        swept = len(study.methods) * config.sweep.updates
        every = config.evaluate_every

        def advance(name: str, rates: jax.Array, keys: jax.Array, states: Any) -> Any:
            # Nothing but the program goes to the device, and nothing comes back.
            with jax.transfer_guard("disallow"):
                return study.advance(study.methods[name], rates, keys, states)

        sweep = [
            (number + 1) * config.sweep.updates
            for number in range(len(study.methods))
            if (number + 1) * config.sweep.updates > start
        ]
        for step in runs.progress(sweep, unit="methods"):
            name = list(study.methods)[step // config.sweep.updates - 1]
            trained = study.init(sweep_keys)
            for _ in range(config.sweep.updates // every):
                trained = advance(name, sweep_rates, sweep_keys, trained)
            scores = np.asarray(study.evaluate(study.validation, sweep_keys, trained)["max_at_k"])
            best = maze.best_rate(config, scores)
            state["chosen"][name] = np.array(best)
            run.log(
                step,
                {
                    "phase": "sweep",
                    "method": name,
                    "scores": scores.reshape(len(rates), -1),
                    "learning_rate": rates[best],
                },
            )
            run.save(step, state)

        chosen_rates = {
            name: jnp.full(config.seeds, rates[int(state["chosen"][name])], jnp.float32)
            for name in study.methods
        }

        def evaluate(update: int) -> None:
            for name in study.methods:
                metrics = study.evaluate(study.test, keys, state["train"][name])
                figures = maze.summarise(metrics)
                runs.check_finite(update, {f"{name} {key}": x for key, x in figures.items()})
                row = {"phase": "train", "update": update, "method": name, **figures}
                # What was before the first update comes after the last save of the sweep.
                run.log(swept + max(update, 1), row)

        first = max(start - swept, 0)
        for update in runs.steps(first, config.updates, every=every):
            if update == every:
                evaluate(0)
            began = time.perf_counter()
            for name in study.methods:
                trained = advance(name, chosen_rates[name], keys, state["train"][name])
                state["train"][name] = jax.block_until_ready(trained)
            seconds += time.perf_counter() - began
            evaluate(update)
            run.save(swept + update, state)

        # From what is saved and logged, and not from the loop, which a restart may find done.
        ks = maze.curve_ks(config)
        curves = {"before training": study.curves(study.test, keys, study.init(keys))}
        curves |= {
            name: study.curves(study.test, keys, state["train"][name]) for name in study.methods
        }
        figures = {name: maze.summarise_curves(curve, ks) for name, curve in curves.items()}
        history = [row for row in runs.read_metrics(run.folder) if row["phase"] == "train"]
        run.figure("curves", maze_figures.curves(figures, ks, config.report_k))
        run.figure("learning_curves", maze_figures.learning_curves(history, config.report_k))
        if config.task.name == "maze":
            run.figure("trajectories", maze_figures.trajectories(study, state["train"], keys))
        steps = (config.updates - first) * config.seeds * config.mazes * config.group_size
        summary = {
            "curves": figures,
            "learning_rates": {name: rates[int(state["chosen"][name])] for name in study.methods},
            "env_steps_per_second": steps * len(study.methods) * study.environment.horizon / seconds
            if seconds
            else None,
        }
        return run.finish(summary, table=_table(summary, history, config.report_k))


def _table(
    summary: dict[str, Any], history: list[dict[str, Any]], report_k: int
) -> dict[str, dict[str, Any]]:
    """A row for each method: the curves at 1, K and their end, and the last entropy."""
    entropies = {row["method"]: row for row in history}  # The last one of each.
    table: dict[str, dict[str, Any]] = {}
    for name, figures in summary["curves"].items():
        row: dict[str, Any] = {"learning rate": summary["learning_rates"].get(name)}
        ks = sorted(int(key.removeprefix("max@")) for key in figures if _is_max(key))
        for k in sorted({1, report_k, ks[-1]} & set(ks)):
            for label in ("max", "pass"):
                key = f"{label}@{k}"
                row |= {key: figures[key], f"{key}_sem": figures[f"{key}_sem"]}
        if name in entropies:
            row |= {key: entropies[name][key] for key in ("entropy", "entropy_sem")}
        table[name] = row
    return table


def _is_max(key: str) -> bool:
    return key.startswith("max@") and not key.endswith("_sem")


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/maze.py")
