"""Which advantages are unbiased, and which of them have the least variance where.

Expected gradients by enumeration, the trace of the gradient's covariance on softmax bandits over
arms, reward laws, policies, N and k, and PKPO's toy problem; see configs/gradient_variance.py.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import jobs
from maxpo.studies.variance import figures as variance_figures
from maxpo.studies.variance import gradient_variance, pkpo_toy, unbiasedness

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, whose `cells` are the rows measured."""
    gradient_variance.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return _print_unbiasedness(run.report())
        rows = jobs.run_jobs(run, gradient_variance.make_jobs(config), config.seed)
        sections = jobs.by_section(rows)
        run.figure("unbiasedness", lambda: unbiasedness.figure(sections["unbiasedness"]))
        run.figure("sweeps", lambda: variance_figures.sweeps(sections["sweep"]))
        run.figure("regime_map", lambda: variance_figures.regime_map(sections["map"]))
        run.figure(
            "pkpo_toy",
            lambda: pkpo_toy.figure(sections["toy curve"], sections["toy variance"]),
        )
        summary = {"agreement": gradient_variance.agreement(rows), "cells": sections}
        return _print_unbiasedness(run.finish(summary, table=gradient_variance.table(rows, config)))


def _print_unbiasedness(summary: dict[str, Any]) -> dict[str, Any]:
    """Prints the table that `Run.report` does not know of; returns the summary."""
    runs.show("\n" + runs.format_table(summary["cells"]["unbiasedness"]))
    return summary


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/gradient_variance.py")
