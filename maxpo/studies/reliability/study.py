"""Every program under every fault, and the table of what was lost, different or not named."""

import functools
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.jobs import Job, Row
from maxpo.studies.reliability.faults import FAULTS, Subject, undisturbed
from maxpo.studies.reliability.programs import PROGRAMS, make_inputs

__all__ = ["check_config", "run_all", "table"]

_AT_ONCE = 4  # Faults of a job, between two of which the study itself is resumed.


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number makes no sense or a program is unknown."""
    runs.check_numbers(config, at_least={"workers": 1, "seed": 0, **dict.fromkeys(FAULTS, 0)})
    unknown = [name for name in config.programs if name not in PROGRAMS]
    if unknown or not config.programs:
        raise ValueError(f"programs: expected some of {', '.join(PROGRAMS)}; got {config.programs}")
    if config.full_disks and not hasattr(resource, "prlimit"):
        raise ValueError(f"full_disks: expected 0 outside of Linux, got {config.full_disks}")


def run_all(config: ConfigDict, run: runs.Run) -> list[Row]:
    """Does what is left of a run, several programs at a time, and returns the rows of all."""
    make_inputs(run.folder)
    state, start = run.restore(np.int32(0))
    key = jax.random.key(config.seed)
    with ThreadPoolExecutor(config.workers) as pool:
        try:
            subjects = list(pool.map(lambda name: undisturbed(name, run.folder), config.programs))
            jobs = _jobs(config, subjects)
            numbers = range(start + 1, len(jobs) + 1)
            found = pool.map(lambda step: jobs[step - 1](jax.random.fold_in(key, step)), numbers)
            for step in runs.steps(start, len(jobs), unit="jobs"):
                for row in next(found):
                    run.log(step, row)
                run.save(step, state)
        finally:
            pool.shutdown(cancel_futures=True)
    return runs.read_metrics(run.folder)


def table(rows: list[Row]) -> list[Row]:
    """A row for each program: how many faults there were, and how often they did harm."""
    return [
        {
            "": name,
            **{kind: sum(row["fault"] == kind for row in own) for kind in _kinds(rows)},
            "runs to the end": sum("differing" in row for row in own),
            "updates lost": sum(row.get("lost", 0) for row in own),
            "differing results": sum(bool(row.get("differing")) for row in own),
            "unnamed": sum(row.get("unnamed", False) for row in own),
        }
        for name in dict.fromkeys(row["program"] for row in rows)
        if (own := [row for row in rows if row["program"] == name])
    ]


def _kinds(rows: list[Row]) -> list[str]:
    return [kind for kind in dict.fromkeys(row["fault"] for row in rows) if kind]


def _jobs(config: ConfigDict, subjects: Sequence[Subject]) -> list[Job]:
    """Some faults of one kind each, program by program."""
    jobs: list[Job] = []
    for fault in FAULTS:
        for number, subject in enumerate(subjects):
            left = config[fault] // len(subjects) + (number < config[fault] % len(subjects))
            while left:
                count = min(left, _AT_ONCE)
                jobs.append(functools.partial(_rows, subject, fault, count))
                left -= count
    return jobs


def _rows(subject: Subject, fault: str, count: int, key: jax.Array) -> list[Row]:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return [{"program": subject.name, **row} for row in FAULTS[fault](subject, count, rng)]
