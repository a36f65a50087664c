"""Times a pool of verifiers that keeps samples apart, beside plain calls in the same run."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.speed import verification_speed

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary, the rows of the table by name."""
    verification_speed.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        timings = []
        for repeat, timing in verification_speed.measure(config):
            run.log(repeat, timing._asdict())
            timings.append(timing)
        return run.finish(verification_speed.table(timings))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/verification_speed.py")
