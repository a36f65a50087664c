"""Does centering pay in language-model training with few prompts a step?

Centered and non-centered advantages train a small model on a puzzle with many right answers, each
at its own best learning rate, with seeds paired by start, prompts and random numbers. At each start
stands the variance of their gradients; see configs/lm_centering.py.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import jobs
from maxpo.studies.lm_centering import comparison, figures, sweep, variance

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary.

    Returns:
      Rows by start and method, and `variance`, by start what `variance.summarize` returns.
    """
    sweep.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return _print_variance(run.report())
        rows = jobs.run_jobs(run, sweep.make_jobs(config), config.seed)
        sections = jobs.by_section(rows)
        trained = sections[None]
        by_start = comparison.curves(trained, config.eval_ks.index(config.eval_k))
        in_format = {row["fine_tuning"]: row["in_format"] for row in trained}
        every = config.evaluate_every
        run.figure(
            "lm_centering", lambda: figures.figure(by_start, in_format, config.eval_k, every)
        )
        table = {
            f"fine-tuning={steps} {method}": {"in_format": in_format[steps], **row}
            for steps, of_start in by_start.items()
            for method, row in comparison.compare(of_start, every).items()
        }
        labels = [method.label for method in sweep.read_methods(config)]
        measured = {
            f"fine-tuning={row['fine_tuning']}": variance.summarize(row, labels)
            for row in sections["variance"]
        }
        return _print_variance(run.finish({**table, "variance": measured}, table=table))


def _print_variance(summary: dict[str, Any]) -> dict[str, Any]:
    """Prints the tables that `Run.report` does not know of; returns the summary."""
    for part in ("methods", "scores"):
        rows = {
            f"{start} {name}": row
            for start, found in summary["variance"].items()
            for name, row in found[part].items()
        }
        runs.show("\n" + runs.format_table(rows))
    return summary


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/lm_centering.py")
