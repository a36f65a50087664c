"""A run's folder: config, metrics, timings, checkpoints, resume, figures.

An experiment is a function `train_and_evaluate(config, workdir)` and one line that makes a
binary of it::

    def train_and_evaluate(config, workdir):
        ...                                           # a ValueError here is the user's: exit 2
        with runs.Run(config, workdir) as run:        # a new folder, or the same config again
            if run.finished:
                return run.report()                   # the stored table, no work
            state, start = run.restore(initial_state)  # the last checkpoint, or (initial_state, 0)
            for step in runs.steps(start, config.updates):
                state, metrics = update(state)
                runs.check_finite(step, {"loss": metrics["loss"]})
                run.log(step, metrics)                # before the save of the same step
                if step % config.save_every == 0 or run.stop_asked():
                    run.save(step, state)
            history = runs.read_metrics(run.folder)   # also what was logged before a restart
            run.figure("learning_curves", lambda: plot(history))  # drawn by `finish`
            return run.finish({"final_reward": ...}, table=rows)

    if __name__ == "__main__":
        runs.main(train_and_evaluate, default_config="configs/bandit.py")

What the folder promises:

* `step` is everywhere the number of updates that are done, or of jobs or rounds in a study that has
  no updates: the checkpoint of step s is the state after s updates, and its metrics are the lines
  up to s. It never goes back.
* Killed at any moment and started again, a run ends with the same state, bit for bit, and the same
  `metrics.jsonl`, byte for byte, as one that was never stopped, provided that everything the loop
  carries from one update to the next is in `state` and that no metric is a time. Times go to
  `timings.jsonl`, by `run.log_timings(step, {"seconds": ...})`: no two runs have the same.
* SIGTERM, by which schedulers take a machine back, saves after the step that is running and ends
  the program with exit code 143; see `preemptible`, in which `main` runs its experiment.
* What a call has returned from is on the disk: `save` and `finish` wait for it, and a checkpoint is
  committed after the metrics that belong to it.
* A figure costs nothing but itself: `finish` draws them after it has written the summary, and
  reports on stderr what fails. A finished run is not drawn again, unless its `summary.json` is
  removed before it is started again: it then goes from its last checkpoint to its end.
* Nobody need watch: what tells how far a run is, or what came out, and cannot be printed, because
  the program that read it has ended or a log's disk is full, is left out, and the run goes on.
* Every JSON file is strict JSON: floats that are not finite are the strings "NaN", "Infinity" and
  "-Infinity", which `float()` reads and `read_metrics` turns back.
* `Run(..., loggers=("tensorboard",))` sends the numbers of each line elsewhere, too. Whatever
  becomes of them there, `metrics.jsonl` has them, and nothing that is read comes from elsewhere.
* One process at a time; a folder of another config, or one that is no run's, is not touched.

On several processes (a pod) process 0 writes config, metrics, summary and figures, and all take
part in the checkpoints; give every process the same workdir on a shared filesystem.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxpo.runs._config import (
        UsageError,
        check_divisor,
        check_numbers,
        check_variant,
        load_config,
    )
    from maxpo.runs._files import read_json, replacing, sync, write_atomic
    from maxpo.runs._main import main, new_folder
    from maxpo.runs._metrics import check_finite, read_metrics, read_timings
    from maxpo.runs._preemption import Preempted, preemptible
    from maxpo.runs._progress import progress, say, show, steps
    from maxpo.runs._run import Run, read_checkpoint
    from maxpo.runs._table import format_table, table_cells

__all__ = [
    "Preempted",
    "Run",
    "UsageError",
    "check_divisor",
    "check_finite",
    "check_numbers",
    "check_variant",
    "format_table",
    "load_config",
    "main",
    "new_folder",
    "preemptible",
    "progress",
    "read_checkpoint",
    "read_json",
    "read_metrics",
    "read_timings",
    "replacing",
    "say",
    "show",
    "steps",
    "sync",
    "table_cells",
    "write_atomic",
]

_HOMES = {
    "_config": ("UsageError", "check_divisor", "check_numbers", "check_variant", "load_config"),
    "_files": ("read_json", "replacing", "sync", "write_atomic"),
    "_main": ("main", "new_folder"),
    "_metrics": ("check_finite", "read_metrics", "read_timings"),
    "_preemption": ("Preempted", "preemptible"),
    "_progress": ("progress", "say", "show", "steps"),
    "_run": ("Run", "read_checkpoint"),
    "_table": ("format_table", "table_cells"),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: programs that use only files and tables start without JAX."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"maxpo.runs.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
