"""The comparison: every method from one warm start, over seeds, before and after."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.tasks.verification import FAILURES, VerifierPool
from maxpo.lm.training.evaluation import Curve, curve
from maxpo.lm.training.failures import counted
from maxpo.lm.training.figures import best_of_k_figure, learning_curves
from maxpo.lm.training.grading import read_summary
from maxpo.lm.training.settings import Settings, make_settings
from maxpo.lm.training.stages import SFT, Stages
from maxpo.methods import Method

__all__ = ["HeldOut", "Scores", "compare", "evaluate", "figures", "run_stages", "start_of", "table"]


class HeldOut(NamedTuple):
    """Scores of held-out problems under S seeds, NaN where the verification failed.

    Attributes:
      scores: `[S, P, n]`.
      deciding: `[S, P, n]`, what decides on success; the scores where a reward has no parts.
    """

    scores: np.ndarray
    deciding: np.ndarray


Scores = dict[str, HeldOut]
"""By label."""


def run_stages(settings: Settings, folder: Path) -> Scores:
    """Does what is left of the warm start and of all methods, each in a folder of its own.

    Returns:
      Held-out scores, those of the warm start first.
    """
    config = settings.config
    with _verifiers(settings) as pool:
        stages = Stages(settings, pool)
        params, summary = stages.fine_tune(folder / SFT)
        summaries = {start_of(settings): [summary]}
        # Seed by seed: a study that is stopped early has compared all methods on some of them.
        for seed in range(config.seeds):
            for method in settings.methods:
                own = _folder_of(folder, method, seed)
                summary = stages.post_train(method, config.seed + seed, params, own)
                summaries.setdefault(method.label, []).append(summary)
    _say_failures([summary for of_seeds in summaries.values() for summary in of_seeds])
    return {
        label: HeldOut(*map(np.stack, zip(*map(read_summary, of_seeds), strict=True)))
        for label, of_seeds in summaries.items()
    }


def start_of(settings: Settings) -> str:
    """The label of the model that all methods start from."""
    return "warm start" if settings.config.sft.steps else "model as it came"


def evaluate(config: ConfigDict, folder: str | Path) -> dict[str, Any]:
    """Judges the model of a config on its held-out problems, in a run of its own.

    Returns:
      The run's summary, see `Stages.evaluate`.
    """
    settings = make_settings(config, trains=False)
    with _verifiers(settings) as pool:
        return Stages(settings, pool).evaluate(Path(folder))


def compare(settings: Settings, scores: Scores) -> dict[str, dict[str, Curve]]:
    """Curves of each quantity: pass@k, and max@k where rewards are graded; by label.

    A sample whose verification failed is one of the k that were drawn, and never the best of them;
    see `best_of_k`.
    """
    return {
        name: {label: curve(values, binary=name == "pass") for label, values in by_label.items()}
        for name, by_label in _quantities(settings, scores).items()
    }


def table(settings: Settings, scores: Scores, folder: Path) -> list[dict[str, Any]]:
    """A row for each model: best of 1, of `eval_k`, and of all, gains, and throughput.

    A gain is the mean difference to the warm start on the same problems, whose standard error is
    smaller than what the two errors beside it suggest.
    """
    rows = []
    report = settings.config.rl.eval_k
    gains = _gains(settings, scores)
    compared, start = compare(settings, scores), start_of(settings)
    for label, of_seeds in scores.items():
        row: dict[str, Any] = {"": label}
        for name, curves in compared.items():
            found = curves[label]
            for k in sorted({1, report, found.k[-1]}):
                row |= found.at(k, f"{name}@{k}")
            if label != start:
                row |= gains[name][label].at(report, f"gain in {name}@{report}")
        row["failed"] = float(np.isnan(of_seeds.scores).mean())
        rows.append(row)
        if label != start:
            row |= _throughput(settings, label, folder)
    return rows


def figures(settings: Settings, scores: Scores, folder: Path) -> dict[str, Callable[[], Figure]]:
    """What draws the study's figures, by name."""

    def best_of_k() -> Figure:
        panels, start = {}, start_of(settings)
        gains = _gains(settings, scores)
        for name, curves in compare(settings, scores).items():
            panels[f"{name}@k on held-out problems"] = curves
            panels[f"gain in {name}@k over the {start}"] = gains[name]
        return best_of_k_figure(panels, start)

    def learning() -> Figure:
        histories = {
            method.label: [
                runs.read_metrics(_folder_of(folder, method, seed))
                for seed in range(settings.config.seeds)
            ]
            for method in settings.methods
        }
        return learning_curves(histories, settings.config.rl.eval_k)

    return {"best_of_k": best_of_k, "learning_curves": learning}


def _folder_of(study: Path, method: Method, seed: int) -> Path:
    """Where a method is trained with one seed."""
    return study / f"{method.folder}-seed{seed}"


def _verifiers(settings: Settings) -> VerifierPool:
    limits = settings.config.verification
    return VerifierPool(
        settings.task.verifier,
        workers=limits.workers,
        time_limit=limits.time_limit,
        memory_limit=limits.memory_limit,
    )


def _gains(settings: Settings, scores: Scores) -> dict[str, dict[str, Curve]]:
    """Curves of the differences to the warm start on the same problems, as `compare`."""
    start = start_of(settings)
    return {
        name: {
            label: curve(values, binary=name == "pass", minus=by_label[start][0])
            for label, values in by_label.items()
            if label != start
        }
        for name, by_label in _quantities(settings, scores).items()
    }


def _quantities(settings: Settings, scores: Scores) -> dict[str, dict[str, np.ndarray]]:
    """What the best of k is taken of: name to label to values `[S, P, n]`."""
    correct = settings.grading.correct
    found = {"pass": {label: correct(each.deciding) for label, each in scores.items()}}
    if not settings.config.task.binary:
        found["max"] = {label: each.scores for label, each in scores.items()}
    return found


def _say_failures(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Says how many verifications failed in the whole study, if any."""
    totals = {kind: sum(each["failures"][kind] for each in summaries) for kind in FAILURES}
    if any(totals.values()):
        verified = sum(each["verified"] for each in summaries)
        runs.say(f"{sum(totals.values())} of {verified} verifications failed: {counted(totals)}")


def _throughput(settings: Settings, label: str, folder: Path) -> dict[str, float]:
    """Thousands of tokens a second while sampling and while updating; the first step compiles."""
    (method,) = (method for method in settings.methods if method.label == label)
    try:
        rows = [
            row
            for seed in range(settings.config.seeds)
            for row in runs.read_timings(_folder_of(folder, method, seed))
            if row["step"] > 1
        ]
        return {
            f"k tokens/s {phase}": sum(row[f"{phase}_tokens"] for row in rows)
            / sum(row[phase] for row in rows)
            / 1000
            for phase in ("sampling", "updating")
            if rows
        }
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        # Times are not protected as metrics are, and no result is made of them.
        reason = f"{type(error).__name__}: {error}"
        runs.say(f"warning: the throughput of {label} is left out, its times are damaged: {reason}")
        return {}
