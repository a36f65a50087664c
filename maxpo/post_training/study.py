"""The comparison: every method from one warm start, over seeds, before and after."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from maxpo import runs
from maxpo.post_training import stages
from maxpo.post_training.evaluation import Curve, curve
from maxpo.post_training.figures import best_of_k_figure, learning_curves
from maxpo.post_training.settings import Settings
from maxpo.verification import VerifierPool

BEFORE = "warm start"

Scores = dict[str, np.ndarray]
"""Label to scores `[S, P, n]` of held-out problems."""


def run_stages(settings: Settings, folder: Path) -> Scores:
    """Does what is left of the warm start and of all methods, each in a folder of its own.

    Returns:
      Held-out scores, those of the warm start first.
    """
    config = settings.config
    programs = stages.make_programs(settings)
    with VerifierPool(
        settings.task.verifier,
        workers=config.verification.workers,
        time_limit=config.verification.time_limit,
        memory_limit=config.verification.memory_limit,
    ) as pool:
        params, summary = stages.warm_start(settings, programs, pool, folder / stages.WARM_START)
        scores = {BEFORE: [summary["scores"]]}
        # Seed by seed: a study that is stopped early has compared all methods on some of them.
        for seed in range(config.seeds):
            for method in settings.methods:
                summary = stages.post_train(
                    settings,
                    programs,
                    pool,
                    method,
                    config.seed + seed,
                    params,
                    folder / f"{method.folder}-seed{seed}",
                )
                scores.setdefault(method.label, []).append(summary["scores"])
    return {label: np.asarray(of_seeds, np.float32) for label, of_seeds in scores.items()}


def compare(settings: Settings, scores: Scores) -> dict[str, dict[str, Curve]]:
    """Curves of each quantity: pass@k, and max@k where rewards are graded; by label."""
    quantities = {"pass": True} if settings.config.task.binary else {"pass": True, "max": False}
    return {
        name: {
            label: curve(_values(settings, of_seeds, binary), binary=binary)
            for label, of_seeds in scores.items()
        }
        for name, binary in quantities.items()
    }


def table(settings: Settings, scores: Scores, folder: Path) -> list[dict[str, Any]]:
    """A row for each model: best of 1, of `report_k`, and of all, gains, and throughput.

    A gain is the mean difference to the warm start on the same problems, whose standard error is
    smaller than what the two errors beside it suggest.
    """
    rows = []
    report = settings.config.rl.report_k
    for label, of_seeds in scores.items():
        row: dict[str, Any] = {"": label}
        for name, curves in compare(settings, {label: of_seeds}).items():
            found = curves[label]
            for k in sorted({1, report, found.k[-1]}):
                _put(row, f"{name}@{k}", found, k)
            if label != BEFORE:
                binary = name == "pass"
                own = {BEFORE: scores[BEFORE], label: of_seeds}
                gain = _gains(settings, own, binary)[label]
                _put(row, f"gain in {name}@{report}", gain, report)
        rows.append(row)
        if label != BEFORE:
            row |= _throughput(settings, label, folder)
    return rows


def figures(settings: Settings, scores: Scores, folder: Path) -> dict[str, Callable[[], Figure]]:
    """What draws the study's figures, by name."""

    def best_of_k() -> Figure:
        panels = {}
        for name, curves in compare(settings, scores).items():
            panels[f"{name}@k on held-out problems"] = curves
            panels[f"gain in {name}@k over the {BEFORE}"] = _gains(settings, scores, name == "pass")
        return best_of_k_figure(panels, BEFORE)

    def learning() -> Figure:
        histories = {
            method.label: [
                runs.read_metrics(folder / f"{method.folder}-seed{seed}")
                for seed in range(settings.config.seeds)
            ]
            for method in settings.methods
        }
        return learning_curves(histories, settings.config.rl.report_k)

    return {"best_of_k": best_of_k, "learning_curves": learning}


def _gains(settings: Settings, scores: Scores, binary: bool) -> dict[str, Curve]:
    """Curves of the differences to the warm start on the same problems."""
    before = _values(settings, scores[BEFORE][0], binary)
    return {
        label: curve(_values(settings, of_seeds, binary), binary=binary, minus=before)
        for label, of_seeds in scores.items()
        if label != BEFORE
    }


def _values(settings: Settings, scores: np.ndarray, binary: bool) -> np.ndarray:
    return settings.correct(scores) if binary else settings.rewards(scores)


def _put(row: dict[str, Any], name: str, curve: Curve, k: int) -> None:
    place = curve.k.index(k)
    row[name], row[f"{name}_sem"] = float(curve.value[place]), float(curve.error[place])


def _throughput(settings: Settings, label: str, folder: Path) -> dict[str, float]:
    """Thousands of tokens a second while sampling and while updating; the first step compiles."""
    (method,) = (method for method in settings.methods if method.label == label)
    rows = [
        row
        for seed in range(settings.config.seeds)
        for row in runs.read_timings(folder / f"{method.folder}-seed{seed}")
        if row["step"] > 1
    ]
    if not rows:
        return {}
    return {
        f"k tokens/s {phase}": sum(row[f"{phase}_tokens"] for row in rows)
        / sum(row[phase] for row in rows)
        / 1000
        for phase in ("sampling", "updating")
    }
