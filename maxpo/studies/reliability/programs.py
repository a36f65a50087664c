"""The programs that faults happen to: small experiments, started as a user starts them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["PROGRAMS", "Ending", "Program", "make_inputs"]

PROGRAMS: dict[str, tuple[str, ...]] = {
    "bandit": (
        "experiments.bandit",
        "--config=configs/bandit.py:quick",
        "--config.methods=('rloo', 'maxpo:k=4')",
        "--config.seeds=2",
        "--config.updates=40",
        "--config.evaluate_every=2",
        "--config.variance_batches=4",
    ),
    "maze": (
        "experiments.maze",
        "--config=configs/maze.py:quick",
        "--config.methods=('maxpo:k=8',)",
        "--config.seeds=2",
        "--config.updates=12",
        "--config.evaluate_every=2",
        "--config.sweep.seeds=2",
        "--config.sweep.updates=12",
        "--config.sweep.learning_rates=(1e-2,)",
        "--config.task.size=7",
        "--config.task.horizon=8",
        "--config.mazes=4",
        "--config.evaluation.mazes=4",
        "--config.evaluation.samples=8",
        "--config.evaluation.curve_samples=8",
    ),
    "lm": (
        "experiments.lm",
        "--config=configs/lm.py:jsonl",
        "--config.methods=('maxpo:k=2',)",
        "--config.seeds=1",
        "--config.task.train_path={inputs}/train.jsonl",
        "--config.task.held_out_path={inputs}/held_out.jsonl",
        "--config.model.size=nano",
        "--config.sft.steps=8",
        "--config.sft.batch_size=8",
        "--config.sft.log_every=1",
        "--config.sft.save_every=2",
        "--config.rl.steps=10",
        "--config.rl.prompts=4",
        "--config.rl.group_size=4",
        "--config.rl.max_new_tokens=3",
        "--config.rl.eval_k=2",
        "--config.rl.save_every=2",
        "--config.evaluation.every=4",
        "--config.evaluation.samples=4",
        "--config.evaluation.prompts=16",
        "--config.verification.workers=1",
    ),
}
"""Module and flags by name; `{inputs}` is the folder of `make_inputs`."""

_SECONDS = 600  # After which a program hangs.


class Ending(NamedTuple):
    """How a program ended.

    Attributes:
      code: Its exit code; a signal's number, negative, if one ended it.
      printed: What it said on stderr.
      seconds: How long it took.
    """

    code: int
    printed: str
    seconds: float


class Program:
    """One of `PROGRAMS` in a folder, as a process of its own; killed at the end of the block.

    Args:
      name: Its name.
      home: Where inputs are and compiled programs are kept.
      workdir: The run's folder.
    """

    def __init__(self, name: str, home: Path, workdir: Path):
        module, *flags = PROGRAMS[name]
        command = [sys.executable, "-m", module, *flags, f"--workdir={workdir}"]
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [word.replace("{inputs}", str(home / "inputs")) for word in command],
            env=os.environ
            | {
                # Where a resumed run is bit-identical to one that was not stopped.
                "JAX_PLATFORMS": "cpu",
                "JAX_ENABLE_COMPILATION_CACHE": "1",
                "JAX_COMPILATION_CACHE_DIR": str(home / "programs"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def runs_for(self, seconds: float) -> bool:
        """Waits so long, or for the program's end; returns whether it still runs."""
        try:
            self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> Ending:
        """Waits for the program's end.

        Raises:
          TimeoutExpired: If it hangs.
        """
        _, printed = self.process.communicate(timeout=_SECONDS)
        return Ending(self.process.returncode, printed, time.monotonic() - self._began)


def make_inputs(home: Path) -> None:
    """Writes the problems of the language model: sums of two digits."""
    lines = [
        json.dumps({"question": f"{i % 10}+{i // 10}=", "answer": str(i % 10 + i // 10)})
        for i in range(100)
    ]
    (home / "inputs").mkdir(parents=True, exist_ok=True)
    (home / "inputs" / "train.jsonl").write_text("\n".join(lines[::2]))
    (home / "inputs" / "held_out.jsonl").write_text("\n".join(lines[1::6]))
