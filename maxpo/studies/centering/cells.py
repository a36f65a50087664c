"""The cells of the centering study: where estimators are compared."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.variance.gradient_variance import check_estimators

__all__ = ["BLOCK", "OPTIMIZERS", "Cell", "check_config", "make_cells", "step_sizes"]

OPTIMIZERS = ("sgd", "momentum", "adam")

BLOCK = 8
"""Groups that are drawn at once for second moments."""


class Cell(NamedTuple):
    """A bandit family, a group and an optimizer; the fields of the config's `base`.

    Attributes:
      hidden_states: H, states that the policy cannot see; 1 hides nothing.
      num_arms: A.
      num_features: D.
      law: binary or gaussian.
      success_rate: Share of right arms, of binary rewards alone.
      group_size: N.
      k: Of the objective and of the estimators that take one.
      groups_per_update: G.
      optimizer: One of `OPTIMIZERS`.
      b2: Decay of Adam's second moments.
    """

    hidden_states: int
    num_arms: int
    num_features: int
    law: str
    success_rate: float
    group_size: int
    k: int
    groups_per_update: int
    optimizer: str
    b2: float

    @property
    def name(self) -> str:
        """The cell in one line.

        >>> Cell(4, 64, 16, "binary", 0.3, 16, 4, 1, "adam", 0.99).name
        'adam, N=16, k=4, G=1, 30% right'
        """
        parts = [self.optimizer, f"N={self.group_size}", f"k={self.k}"]
        parts.append(f"G={self.groups_per_update}")
        parts.append(f"{self.success_rate:.0%} right" if self.law == "binary" else self.law)
        if self.optimizer == "adam" and self.b2 != 0.99:
            parts.append(f"b2={self.b2:g}")
        if self.hidden_states == 1:
            parts.append("nothing hidden")
        return ", ".join(parts)


def make_cells(config: ConfigDict) -> list[Cell]:
    """The grid, then the further points, each `base` with changes.

    Raises:
      ValueError: If a field of a cell has no sense, naming the cell and the field.
    """
    base = config.base.to_dict()
    axes = config.grid.to_dict()
    _check_cell("base", _make_cell("base", base))
    changes: list[tuple[str, Mapping[str, Any]]] = [
        ("grid", dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]
    changes += [(f"points[{number}]", change) for number, change in enumerate(config.points)]
    cells = []
    for name, change in changes:
        cell = _make_cell(name, {**base, **change})
        _check_cell(name, cell)
        if config.groups % (config.evaluations * cell.groups_per_update):
            raise ValueError(
                f"{name}: groups_per_update: expected updates that {config.evaluations} evaluations"
                f" divide: {config.groups} groups, {cell.groups_per_update} in each update"
            )
        if cell not in cells:
            cells.append(cell)
    return cells


def _make_cell(name: str, fields: Mapping[str, Any]) -> Cell:
    if set(fields) != set(Cell._fields):
        raise ValueError(
            f"{name}: expected fields of base ({', '.join(Cell._fields)}); got {', '.join(fields)}"
        )
    return Cell(**fields)


def _check_cell(name: str, cell: Cell) -> None:
    fields = cell._asdict()
    least = {"hidden_states": 1, "num_arms": 2, "num_features": 1, "groups_per_update": 1}
    try:
        runs.check_numbers(ConfigDict(fields), at_least={**least, "group_size": 2, "k": 1})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if cell.law not in ("binary", "gaussian"):
        raise ValueError(f"{name}: law: expected binary or gaussian, got {cell.law!r}")
    if cell.optimizer not in OPTIMIZERS:
        raise ValueError(
            f"{name}: optimizer: expected one of {', '.join(OPTIMIZERS)}; got {cell.optimizer!r}"
        )
    for field in ("success_rate", "b2"):
        if not 0 < fields[field] < 1:
            raise ValueError(f"{name}: {field}: expected between 0 and 1, got {fields[field]}")
    if not 1 <= cell.k <= cell.group_size - 1:
        raise ValueError(
            f"{name}: k: expected 1 <= k <= group_size - 1 = {cell.group_size - 1}, because "
            f"a sample is left out, got {cell.k}"
        )


def step_sizes(config: ConfigDict, cell: Cell) -> tuple[float, ...]:
    """The grid of the cell's optimizer, for its groups per update.

    Where noise decides, G groups in an update allow a step of G times the length by the same number
    of samples; Adam divides by the noise, so that sqrt(G) times the length does the same.
    """
    power = 0.5 if cell.optimizer == "adam" else 1.0
    return tuple(size * cell.groups_per_update**power for size in config.step_sizes[cell.optimizer])


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    check_estimators(config.estimators)
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "seeds": 4,  # Two halves, with an error each.
            "groups": 1,
            "evaluations": 2,
            "test_contexts": 1,
            "probes": 2,
            "probe_groups": 8,
            "frozen.seeds": 1,
            "frozen.groups": 8,
            "frozen.updates": 10,
            "frozen.shown": 1,
        },
        above={f"step_sizes.{name}": 0 for name in OPTIMIZERS},
    )
    for field, groups in (
        ("probe_groups", config.probe_groups),
        ("frozen.groups", config.frozen.groups),
    ):
        if groups % BLOCK:
            raise ValueError(f"{field}: expected a multiple of {BLOCK}, got {groups}")
    b2s = config.frozen.b2
    if not b2s or not all(0 < b2 < 1 for b2 in b2s):
        raise ValueError(f"frozen.b2: expected numbers between 0 and 1, got {b2s}")
    if config.frozen.seeds > config.seeds:
        raise ValueError(
            f"frozen.seeds: expected at most seeds = {config.seeds}, got {config.frozen.seeds}"
        )
    if not 0 < config.target < 1:
        raise ValueError(f"target: expected a share between 0 and 1, got {config.target}")
    make_cells(config)
    coordinates = config.base.num_arms * config.base.num_features
    if config.frozen.shown > coordinates:
        raise ValueError(
            "frozen.shown: expected at most base.num_arms * base.num_features = "
            f"{coordinates}, got {config.frozen.shown}"
        )
