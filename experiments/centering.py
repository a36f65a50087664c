"""Where centering pays in learning: predicted from the gradient's moments, and measured.

A linear softmax policy on bandits with fresh contexts and a hidden state, over success rates, k,
groups in an update and optimizers; each estimator at its own best step size. Beside every cell
stand the variance ratio of `maxpo` and `pkpo_loo_minus_one` and the ratio of samples that it
predicts.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import jobs
from maxpo.studies.centering import cells, figures, study

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary."""
    cells.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        rows = jobs.run_jobs(run, study.make_jobs(config), config.seed)
        summary = study.summarize(rows)
        run.figure("centering", lambda: figures.prediction(summary["cells"]))
        run.figure("centering_gains", lambda: figures.gains(summary["cells"], config.grid))
        frozen = jobs.by_section(rows)["frozen"]
        run.figure("centering_adam", lambda: figures.coordinates(frozen))
        return run.finish(summary, table=study.table(summary["cells"], config.estimators))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/centering.py")
