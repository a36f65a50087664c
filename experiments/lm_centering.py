"""Does centering pay in language-model training with few prompts a step?

Centered and non-centered advantages train a small model on a puzzle with many right answers, each
at its own best learning rate, with seeds paired by start, prompts and random numbers; see
configs/lm_centering.py.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import jobs
from maxpo.studies.lm_centering import comparison, figures, sweep

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, rows by start and method."""
    sweep.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        rows = jobs.run_jobs(run, sweep.make_jobs(config), config.seed)
        by_start = comparison.curves(rows, config.eval_ks.index(config.eval_k))
        in_format = {row["fine_tuning"]: row["in_format"] for row in rows}
        every = config.evaluate_every
        run.figure(
            "lm_centering", lambda: figures.figure(by_start, in_format, config.eval_k, every)
        )
        summary = {
            f"fine-tuning={steps} {method}": {"in_format": in_format[steps], **row}
            for steps, of_start in by_start.items()
            for method, row in comparison.compare(of_start, every).items()
        }
        return run.finish(summary)


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/lm_centering.py")
