"""Compares methods on bandits whose objective is known exactly.

Every method trains the same policies on the same bandits with the same N, k and step size, all
seeds at once. Reported are the exact J_1 and J_k, the variance of the gradient along the way and
the entropy of the policy; see configs/bandit.py for the variants.
"""

import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import bandit

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, a dict of figures by method."""
    bandit.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        trainer = bandit.make_trainer(config)
        rates = bandit.learning_rates(config)
        numbers = {name: number for number, name in enumerate(rates)}
        state, start = run.restore({name: trainer.init(trainer.keys) for name in numbers})

        def evaluate(step: int) -> None:
            for name, number in numbers.items():
                metrics = trainer.evaluate(number, trainer.keys, state[name])
                figures = bandit.summarize(metrics)
                runs.check_finite(step, {f"parameters of {name}": state[name].params})
                run.log(step, {"method": name, **figures})

        if start == 0:
            evaluate(0)
        # Before the clock starts.
        some_state = next(iter(state.values()))
        advance = trainer.advance.lower(0, config.learning_rate, trainer.keys, some_state).compile()
        seconds = dict.fromkeys(numbers, 0.0)
        for step in runs.steps(start, config.updates, every=config.evaluate_every):
            for name, number in numbers.items():
                began = time.perf_counter()
                state[name] = advance(number, rates[name], trainer.keys, state[name])
                jax.block_until_ready(state[name])
                seconds[name] += time.perf_counter() - began
            evaluate(step)
            run.save(step, state)

        # From what is logged, and not from the loop, which a restart may find done.
        history = runs.read_metrics(run.folder)
        updates = (config.updates - start) * config.seeds
        summary = {
            name: bandit.final_figures(history, name)
            | {"updates_per_second": updates / seconds[name] if updates else None}
            for name in numbers
        }
        run.figure("learning_curves", lambda: bandit.learning_curves(history, config.eval_k))
        return run.finish(summary)


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/bandit.py")
