"""Every program under every fault, and the table of what was lost, different or not named."""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from maxpo.runs import check_numbers
from maxpo.studies.jobs import Job, Row
from maxpo.studies.reliability.faults import FAULTS, Subject
from maxpo.studies.reliability.programs import PROGRAMS, make_inputs

__all__ = ["check_config", "jobs", "table"]


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number makes no sense or a program is unknown."""
    check_numbers(config, at_least={"seed": 0, **dict.fromkeys(FAULTS, 0)})
    unknown = [name for name in config.programs if name not in PROGRAMS]
    if unknown or not config.programs:
        raise ValueError(f"programs: expected some of {', '.join(PROGRAMS)}; got {config.programs}")


def jobs(config: ConfigDict, home: Path) -> list[Job]:
    """A job for each program, under every fault."""
    make_inputs(home)
    programs = config.programs
    return [
        functools.partial(
            _rows,
            Subject(name, home),
            {fault: _share(config[fault], number, len(programs)) for fault in FAULTS},
        )
        for number, name in enumerate(programs)
    ]


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


def _share(total: int, number: int, count: int) -> int:
    """How many of `total` faults the program of this number gets."""
    return total // count + (number < total % count)


def _rows(subject: Subject, counts: dict[str, int], key: jax.Array) -> list[Row]:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    rows = [subject.undisturbed()]
    for fault, count in counts.items():
        rows += FAULTS[fault](subject, count, rng)
    return [{"program": subject.name, **row} for row in rows]
