"""Kills, ends, damages programs and takes their disk away, and counts what that costs them.

A bandit, mazes and a small language model run as programs of their own and get SIGKILL, SIGTERM or
a full disk at random moments, and are started again until they end; files of stopped ones are cut
or get another bit. See docs/reliability.md for the figures, and configs/chaos.py for the numbers.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.reliability import study

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, with a table by program."""
    study.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        return run.finish({}, table=study.table(study.run_all(config, run)))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/chaos.py")
