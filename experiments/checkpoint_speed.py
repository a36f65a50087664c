"""Times how checkpoints are read and written, beside safetensors' own function in the same run."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.speed import checkpoint_speed

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary, the rows of the table by name."""
    checkpoint_speed.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        timings: list[checkpoint_speed.Timing] = []
        for timing in checkpoint_speed.measure(config):
            timings.append(timing)
            run.log(len(timings), timing._asdict())
        return run.finish(checkpoint_speed.table(timings))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/checkpoint_speed.py")
