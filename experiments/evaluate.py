"""Judges a model by the best of k of its samples, without training it.

    python -m experiments.evaluate MODEL TASK [--config.FIELD=VALUE] [--workdir=DIR]

MODEL is the folder of a checkpoint (Llama, Qwen2, Qwen3), or of a run that has hf/. TASK is a file
of problems (JSON lines or Parquet, with the fields "question" and "answer"), or a data set of
reasoning-gym, such as chain_sum. Fields are those of configs/lm.py, of which these matter here:

    --config.evaluation.samples=32     n, of each problem; pass@k is known for k up to n
    --config.rl.max_new_tokens=64      the longest completion
    --config.task.held_out_size=512    problems of a data set
    --config.task.options='{"max_terms": 3}'
    --config.task.prompt_field=question --config.task.answer_field=answer   of a file
    --config.task.verifier=numeric     or exact, math, scorer, module:function
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import parallel, runs
from maxpo.studies import lm as study

__all__ = ["evaluate", "main"]


def evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Judges the model of a config on its held-out problems, and returns the run's summary."""
    with parallel.use(parallel.make_mesh(config.mesh.data, config.mesh.model)):
        return study.evaluate(config, workdir)


def main(argv: Sequence[str] | None = None) -> None:
    """Judges a model and exits as `maxpo.runs.main` does.

    Args:
      argv: The command line, program's name first; that of the process if None.
    """
    program, *rest = sys.argv if argv is None else argv
    words = [word for word in rest if not word.startswith("-")]
    options = [word for word in rest if word.startswith("-")]
    if len(words) != 2 and not any(word in ("-h", "--help") for word in options):
        got = " ".join(words) or "none"
        print(
            f"error: expected MODEL and TASK, got {got}; see python -m experiments.evaluate --help",
            file=sys.stderr,
        )
        raise SystemExit(2)
    model, task = words if len(words) == 2 else ("", "")
    is_file = Path(task).exists() or "." in task or "/" in task
    fields = {"model.pretrained": model, "sft.steps": 0}
    if is_file:
        fields |= {"task.train_path": task, "task.held_out_path": task}
    else:
        fields |= {"task.dataset": task, "task.train_size": 1}
    runs.main(
        evaluate,
        default_config=f"configs/lm.py:{'jsonl' if is_file else 'reasoning'}",
        argv=[program, *(f"--config.{name}={value}" for name, value in fields.items()), *options],
    )


if __name__ == "__main__":
    main()
