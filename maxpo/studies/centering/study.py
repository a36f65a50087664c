"""The centering study, cell by cell, in jobs that a run can resume between."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maxpo.studies.centering import comparison, frozen, prediction
from maxpo.studies.centering.cells import BLOCK, Cell, make_cells, step_sizes
from maxpo.studies.centering.moments import expected_directions, measure
from maxpo.studies.centering.prediction import own_share, squares_of
from maxpo.studies.centering.training import shape_of, train
from maxpo.studies.jobs import Job, Row, by_section
from maxpo.studies.variance.gradient_variance import PAIR, exact_variance
from maxpo.studies.variance.moments import Estimate, mean

__all__ = ["make_jobs", "predictions", "summarize", "table"]


def make_jobs(config: ConfigDict) -> list[Job]:
    """One job for each cell, whose row is the cell of the summary, and one for frozen policies."""
    # All cells have the keys of the same seeds: their tasks and random numbers are paired.
    cells = make_cells(config)
    jobs: list[Job] = [partial(_run_cell, config=config, cell=cell) for cell in cells]
    adam = Cell(**config.base)._replace(optimizer="adam")
    return [*jobs, partial(frozen.coordinates, config=config, cell=adam)]


def _run_cell(key: jax.Array, *, config: ConfigDict, cell: Cell) -> list[Row]:
    del key
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    shape, sizes = shape_of(config, cell), step_sizes(config, cell)
    k, rate = jnp.float32(cell.k), jnp.float32(cell.success_rate)
    curves = train(shape, keys, jnp.asarray(sizes), k, rate, jnp.float32(cell.b2))
    objectives = np.asarray(curves.objectives, np.float64)
    chosen, reported = comparison.halves(config.seeds)

    best = {
        name: comparison.best_step(objectives[-1, number][:, chosen])
        for number, name in enumerate(config.estimators)
    }
    numbers = [config.estimators.index(name) for name in PAIR]
    steps = [best[name] for name in PAIR]
    pair = [objectives[:, number] for number in numbers]
    # Where training passes through: at equal distances from the start, but not at the end.
    points = np.arange(config.probes) * config.evaluations // config.probes
    policies = jnp.concatenate(
        [
            curves.policies[points, number, step, reported]
            for number, step in zip(numbers, steps, strict=True)
        ]
    )
    return [
        {
            "section": "cell",
            "cell": cell.name,
            **cell._asdict(),
            "start": float(objectives[0].mean()),
            "estimators": {
                name: _final(objectives[-1, number], best[name], sizes, reported)
                for number, name in enumerate(config.estimators)
            },
            **_difference("difference", pair, steps, reported),
            # The shortest steps of the grid, where noise has the least to say.
            **_difference("short_step_difference", pair, (0, 0), reported),
            **_samples_ratio(pair, steps, config),
            **_ratios(config, cell, keys[reported], policies),
            "start_variance_ratio_exact": _exact_ratio(cell),
        }
    ]


def _final(finals: np.ndarray, step: int, sizes: Sequence[float], seeds: slice) -> Row:
    """An estimator's last objective at its best step size, given all `[R, S]`."""
    value, error = mean(finals[step, seeds])
    return {
        "max_at_k": value,
        "max_at_k_sem": error,
        "step_size": sizes[step],
        "step_size_at_edge": step in (0, len(sizes) - 1),
    }


def _difference(
    label: str, pair: Sequence[np.ndarray], steps: Sequence[int], seeds: slice
) -> dict[str, float]:
    """The last objective of MaxPO minus its opponent's, seed by seed."""
    reference, maxpo = (curves[-1, step, seeds] for curves, step in zip(pair, steps, strict=True))
    value, error = mean(maxpo - reference)
    return {label: value, f"{label}_sem": error}


def _ratios(
    config: ConfigDict, cell: Cell, keys: jax.Array, policies: jax.Array
) -> dict[str, float]:
    """The ratio of variances at policies `[T, S, A, D]`, and what it predicts for the samples."""
    shape = shape_of(config, cell)
    args = (keys, policies, jnp.float32(cell.k), jnp.float32(cell.success_rate))
    moments = measure(shape, PAIR, config.probe_groups, *args)
    if cell.optimizer == "adam":
        squares = squares_of(moments, cell.groups_per_update)
        updates = max(config.probe_groups // cell.groups_per_update, BLOCK)
        share = jnp.float32(own_share(cell.b2))
        directions = expected_directions(shape, PAIR, updates, *args, squares, share)
        predicted = prediction.predicted_ratio_of_adam(moments, directions)
    else:
        predicted = prediction.predicted_ratio(moments, cell.groups_per_update)
    variances = prediction.variance_ratio(moments)
    return {
        "variance_ratio": float(variances.value),
        "variance_ratio_sem": float(variances.error),
        "predicted_ratio": float(predicted.value),
        "predicted_ratio_sem": float(predicted.error),
    }


def _samples_ratio(pair: Sequence[np.ndarray], best: Sequence[int], config: ConfigDict) -> Row:
    """Samples of MaxPO to the target over those of its opponent, each by its fastest step size."""
    chosen, reported = comparison.halves(config.seeds)
    ends = [curves[:, step, chosen] for curves, step in zip(pair, best, strict=True)]
    target = comparison.target_of(ends[0], ends[1], config.target)
    curves = [
        curves[:, comparison.fastest_step(curves[:, :, chosen], target), reported]
        for curves in pair
    ]

    def ratio(seeds: np.ndarray) -> float:
        reference, maxpo = (
            comparison.samples_to(curve[:, seeds].mean(axis=1), target, config.groups)
            for curve in curves
        )
        return maxpo / reference if np.isfinite(reference + maxpo) and reference else np.nan

    value, error = comparison.jackknife(ratio, curves[0].shape[1])
    return {"target": target, "samples_ratio": value, "samples_ratio_sem": error}


def _exact_ratio(cell: Cell) -> float | None:
    """The closed form at the uniform start, of the noise within a context, if there is one."""
    right = max(1, round(cell.success_rate * cell.num_arms))
    if cell.law != "binary" or right == cell.num_arms:  # All arms pay 1: there is no noise.
        return None
    reference, maxpo = (
        exact_variance(
            name,
            cell.k,
            group_size=cell.group_size,
            success_rate=right / cell.num_arms,
            right_arms=right,
            wrong_arms=cell.num_arms - right,
        )
        for name in PAIR
    )
    return maxpo / reference


def predictions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the predicted ratios tell the measured ones, of all cells and by optimizer.

    Cells in which one of the pair does not reach the target with every seed left out count as not
    measured. Fewer than three cells have no fit.
    """
    measured = [row for row in rows if prediction.is_measured(row)]
    found: dict[str, Any] = {**_fit(measured), "cells": len(measured)}
    for optimizer in dict.fromkeys(row["optimizer"] for row in measured):
        own = [row for row in measured if row["optimizer"] == optimizer]
        found[optimizer] = {**_fit(own), "cells": len(own)}
    return found


def _fit(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if len(rows) < 3:
        return dict.fromkeys(prediction.Fit._fields, np.nan)
    predicted, measured = (
        [Estimate(row[label], row[f"{label}_sem"]) for row in rows]
        for label in ("predicted_ratio", "samples_ratio")
    )
    return prediction.fit(predicted, measured)._asdict()


def summarize(rows: Sequence[Row]) -> Row:
    """The summary.

    Returns:
      `cells`; `prediction`, how well measured ratios follow predicted ones; `counts`, how often
      either one of the pair is ahead; `adam`, the mean directions of frozen policies, by b2.
    """
    sections = by_section(rows)
    cells = sections["cell"]
    adam = [
        {
            "b2": row["b2"],
            **{name: row[name]["correlation"] for name in PAIR},
            "samples_ratio_predicted": row["samples_ratio_predicted"],
            "samples_ratio_measured": row["samples_ratio_measured"],
        }
        for row in sections.get("frozen", [])
    ]
    return {
        "cells": cells,
        "prediction": predictions(cells),
        "counts": _counts(cells),
        "adam": adam,
    }


def _counts(cells: Sequence[Mapping[str, Any]]) -> Row:
    """In how many cells MaxPO ends above or below the other of the pair by three standard errors.

    `predicted` are cells with one group in each update and a variance ratio below 0.8.
    """
    counts: Row = {}
    for label, rows in {
        "all": list(cells),
        "predicted": [
            row for row in cells if row["groups_per_update"] == 1 and row["variance_ratio"] < 0.8
        ],
    }.items():
        # The error is 0 where nothing is ever learned: such cells are neither.
        pairs = [(row["difference"], 3 * row["difference_sem"]) for row in rows]
        counts[label] = {
            "cells": len(rows),
            "above": sum(difference > bound for difference, bound in pairs),
            "below": sum(difference < -bound for difference, bound in pairs),
        }
    return counts


def table(rows: Sequence[Mapping[str, Any]], estimators: Sequence[str]) -> list[Row]:
    """A line for each cell: ratios, and final objectives."""
    lines = []
    for row in rows:
        line: Row = {"cell": row["cell"]}
        for label in ("variance_ratio", "predicted_ratio", "samples_ratio"):
            line |= {label: row[label], f"{label}_sem": row[f"{label}_sem"]}
        for name in estimators:
            figures = row["estimators"][name]
            line |= {name: figures["max_at_k"], f"{name}_sem": figures["max_at_k_sem"]}
        lines.append(line)
    return lines
