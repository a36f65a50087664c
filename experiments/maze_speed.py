"""Times environments under a uniform random policy, beside XLand-MiniGrid's in the same run."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.speed import maze_speed

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary, the rows of the table by name."""
    maze_speed.check_config(config)
    environments = maze_speed.make_environments(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        return run.finish(maze_speed.table(maze_speed.measure(config, environments)))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/maze_speed.py")
