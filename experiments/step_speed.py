"""Times a whole step of reinforcement learning beside TRL's and Tunix's, and the start of a run.

All do the same: sample groups, score them with a function that takes no time, subtract their means
and update a Qwen3 of one shape. Steps are taken in turns in one process, on the CPU. A trainer that
is not installed is left out. Starts are processes of `experiments.lm`, timed from the command to
the first update.
"""

import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.speed import step_speed
from maxpo.studies.speed.startup import STARTS, start_times, tiny_run

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary.

    That has the "seconds" of each trainer, their "ratios" to this library's, those of all "starts",
    and the rows of the "table".
    """
    names = step_speed.check_config(config)
    with runs.Run(config, workdir) as run, tempfile.TemporaryDirectory() as scratch:
        if run.finished:
            return run.report()
        starts: dict[str, list[float]] = {name: [] for name in STARTS} if config.starts else {}
        # Before this process has threads and memory of its own.
        for number in range(config.starts):
            folder = Path(scratch) / f"starts{number}"
            folder.mkdir()
            for name, taken in start_times(tiny_run(folder), folder).items():
                starts[name].append(taken)
        steps: dict[str, list[step_speed.Step]] = {name: [] for name in names}
        for name, step in step_speed.timed_steps(config, names, Path(scratch)):
            steps[name].append(step)
            run.log(len(steps[name]), {"trainer": name, **step.flat()})
        medians = step_speed.seconds(steps)
        ratios = {
            name: {what: taken / medians["maxpo"][what] for what, taken in of.items()}
            for name, of in medians.items()
        }
        summary = {"seconds": medians, "ratios": ratios, "starts": starts}
        return run.finish(summary, table=step_speed.rows(medians, starts))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/step_speed.py")
