"""Studies that are lists of measurements, resumed between any two of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maxpo import runs

__all__ = ["Job", "Row", "by_section", "run_jobs"]

Row = dict[str, Any]
Job = Callable[[jax.Array], list[Row]]


def run_jobs(run: runs.Run, jobs: Sequence[Job], seed: int) -> list[Row]:
    """Does the jobs that are left of a run, in order, and returns the rows of all.

    Args:
      run: An open run, not finished.
      jobs: Each takes a PRNG key of its own and returns rows to log.
      seed: Seed of the keys.
    """
    # What a job measures depends on nothing but its number, so there is no state to carry.
    state, start = run.restore(np.int32(0))
    key = jax.random.key(seed)
    for step in runs.steps(start, len(jobs), unit="jobs"):
        for row in jobs[step - 1](jax.random.fold_in(key, step)):
            run.log(step, row)
        run.save(step, state)
    return runs.read_metrics(run.folder)


def by_section(rows: Sequence[Row]) -> dict[str | None, list[Row]]:
    """Logged rows by their section, without what only the log needs; None where they have none."""
    sections: dict[str | None, list[Row]] = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in ("step", "section")}
        sections.setdefault(row.get("section"), []).append(kept)
    return sections
