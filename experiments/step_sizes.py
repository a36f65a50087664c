"""Compares estimators at a common step size and at each one's own best.

Every method is trained on the bandits of configs/bandit.py at every step size of a grid, all
step sizes and seeds at once, so that scale cannot explain who wins.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import bandit as bandit_configs
from maxpo import runs
from maxpo.studies import bandit, step_sizes

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, figures by "bandit method"."""
    runs.check_numbers(config, above={"step_sizes": 0})
    if config.common not in config.step_sizes:
        raise ValueError(f"common: expected one of {config.step_sizes}, got {config.common}")
    if not config.seeds >= 4:
        raise ValueError(f"seeds: expected at least 4, two halves, got {config.seeds}")
    if not config.bandits or len(set(config.bandits)) < len(config.bandits):
        raise ValueError(f"bandits: expected different variants, got {config.bandits}")
    studies = {}
    for variant in config.bandits:
        study = bandit_configs.get_config(variant)
        study.update(seeds=config.seeds, updates=config.updates, methods=config.methods)
        study.evaluate_every = config.updates
        study.eval_k = config.eval_k or study.eval_k
        bandit.check_config(study)
        if any(method.learning_rate for method in bandit.read_methods(study)):
            raise ValueError("methods: expected no learning_rate, which is what is varied here")
        studies[variant] = study

    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        objectives: dict[str, dict[str, np.ndarray]] = {}
        summary = {}
        for number, variant in enumerate(runs.progress(config.bandits, unit="bandits"), start=1):
            found = step_sizes.final_objectives(studies[variant], config.step_sizes)
            objectives[variant] = found
            for name, values in found.items():
                run.log(number, {"bandit": variant, "method": name, "max_at_k": values})
            for name, row in step_sizes.compare(found, config.step_sizes, config.common).items():
                summary[f"{variant} {name}"] = row
        eval_ks = {variant: study.eval_k for variant, study in studies.items()}
        run.figure(
            "step_sizes",
            lambda: step_sizes.step_size_figure(objectives, config.step_sizes, eval_ks),
        )
        return run.finish(summary)


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/step_sizes.py")
