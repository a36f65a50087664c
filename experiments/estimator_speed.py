"""Times `maxpo` against a plain sort, the quadratic definition and PKPO's NumPy recurrence.

All times are medians of calls taken in turns in one process, and compared as ratios. The table has
a row for each shape; the figure shows time and memory as groups grow to 2^17 samples.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.speed import estimator_speed

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary, the rows of the table by shape."""
    estimator_speed.check_config(config)
    batches = list(zip(config.groups, config.group_sizes, strict=True))
    growing = [(config.scaling_rewards // size, size) for size in config.scaling_sizes]
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        key = jax.random.key(config.seed)
        timings = {
            shape: estimator_speed.measure(config, shape, key)
            for shape in runs.progress(list(dict.fromkeys(batches + growing)), unit="shapes")
        }
        # A step is a shape that is done.
        for step, shape in enumerate(timings, start=1):
            for timing in timings[shape]:
                run.log(step, timing._asdict())
        run.figure(
            "estimator_speed",
            lambda: estimator_speed.scaling_figure(
                [t for shape in growing for t in timings[shape]]
            ),
        )
        rows = estimator_speed.table([t for shape in timings for t in timings[shape]])
        return run.finish(rows)


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/estimator_speed.py")
