"""How much of MaxPO's baseline to subtract, and whether past updates can tell.

Variances of the weights between 0 and 1 on softmax bandits, the weight that past updates give, and
bounds on what a rule that sees one group can do; see configs/baseline_weight.py.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies import jobs
from maxpo.studies.variance import baseline_weight

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, whose `cells` are the rows measured."""
    baseline_weight.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return _print_tables(run.report())
        rows = jobs.run_jobs(run, baseline_weight.make_jobs(config), config.seed)
        run.figure("baseline_weight", lambda: baseline_weight.figure(rows, config.map_group_size))
        summary = {
            "counts": baseline_weight.counts(rows),
            "agreement": baseline_weight.agreement(rows),
            "above": baseline_weight.above(rows),
            "certificates": baseline_weight.certificates(config),
            "cells": rows,
        }
        return _print_tables(run.finish(summary, table=baseline_weight.table(rows)))


def _print_tables(summary: dict[str, Any]) -> dict[str, Any]:
    """Prints the tables that `Run.report` does not know of; returns the summary."""
    counted = [{"": name, "cells": value} for name, value in summary["counts"].items()]
    for title, rows in (
        (
            "Every rule that sees one group alone is somewhere above the better end by a factor",
            summary["certificates"],
        ),
        ("Monte Carlo against closed forms, in standard errors", summary["agreement"]),
        ("The weight of past updates (the rule), in cells", counted),
    ):
        runs.show(f"\n{title}\n{runs.format_table(rows)}")
    return summary


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/baseline_weight.py")
