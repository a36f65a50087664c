"""What the summary of a run says after its last step."""

from typing import Any

from maxpo import runs
from maxpo.lm.tasks.verification import FAILURES, Scores
from maxpo.lm.training.grading import summarized
from maxpo.lm.training.schedule import Schedule

__all__ = ["summary_of"]


def summary_of(
    run: runs.Run, schedule: Schedule, step: int, group_size: int, evaluated: Scores
) -> dict[str, Any]:
    """What a run's summary says after its last step.

    Args:
      run: The run.
      schedule: Of its evaluations.
      step: The last one.
      group_size: N, of training.
      evaluated: The scores of held-out problems after it.
    """
    return {
        **summarized(evaluated),
        "steps": step,
        "best": schedule.best(runs.read_metrics(run.folder)),
        **_verification_counts(run, group_size, evaluated),
    }


def _verification_counts(run: runs.Run, group_size: int, evaluated: Scores) -> dict[str, Any]:
    """How many samples were verified in training and evaluation, and the failures among them.

    Those of training are read from what was logged: a restart has not seen the steps before it.
    """
    steps = [line for line in runs.read_metrics(run.folder) if "sampled_groups" in line]
    return {
        "verified": evaluated.rewards.size
        + sum(line["sampled_groups"] for line in steps) * group_size,
        "failures": {
            kind: evaluated.failures[kind] + sum(line[f"failed_{kind}"] for line in steps)
            for kind in FAILURES
        },
    }
