"""How long a training run takes from its command to its first update, cold, warm and after a kill.

Each start is a process of its own. The first of a round finds no compiled program, the others find
those of the starts before. A restart goes on in the folder of a run that was killed after some
updates, by when it has compiled the programs for the lengths that its completions usually have.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from maxpo import runs

__all__ = ["STARTS", "start_times", "tiny_run"]

STARTS = ("cold start", "warm start", "restart after a kill")

UPDATES = 20  # Of a run before it is killed.
PAUSE = 0.02  # Seconds between two looks at a run's folder.


def tiny_run(folder: Path) -> list[str]:
    """The command of a training run that is mostly its start, without a folder of its own.

    Args:
      folder: For its problems.
    """
    numbers = range(2, 10)
    problems = [
        json.dumps({"question": f"{a}+{b}=", "answer": str(a + b)})
        for a in numbers
        for b in numbers
    ]
    for name, part in (("train", problems[:48]), ("held_out", problems[48:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part), encoding="utf-8")
    fields = {
        "task.train_path": folder / "train.jsonl",
        "task.held_out_path": folder / "held_out.jsonl",
        "methods": ("maxpo:k=4",),
        "seeds": 1,
        "model.size": "nano",
        "sft.steps": 0,
        "rl.steps": 1000,
        "rl.save_every": 1,
        "rl.prompts": 8,
        "rl.group_size": 8,
        "rl.max_new_tokens": 8,
        "evaluation.samples": 8,
        "evaluation.prompts": 16,
    }
    program = [sys.executable, "-m", "experiments.lm", "--config=configs/lm.py:jsonl"]
    return [*program, *(f"--config.{name}={value}" for name, value in fields.items())]


def start_times(command: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds to the first update that a start makes, by `STARTS`.

    Args:
      command: Of `tiny_run`.
      folder: For runs, an own one for each call.

    Raises:
      RuntimeError: If a run ends by itself.
    """
    programs = folder / "programs"
    found = {}
    for name, run in zip(STARTS, ("first", "second", "second"), strict=True):
        done = _last_update(folder / run)
        began = time.perf_counter()
        with _started([*command, f"--workdir={folder / run}"], programs) as process:
            while _last_update(folder / run) <= done:
                _wait(process)
            found[name] = time.perf_counter() - began
            while _last_update(folder / run) < UPDATES or not _is_saved(folder / run):
                _wait(process)
    return found


@contextmanager
def _started(command: Sequence[str], programs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed in the end, with all that it started."""
    # Where programs are kept if nobody says where, see `maxpo.runs.main`.
    environment = {**os.environ, "XDG_CACHE_HOME": str(programs)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        except RuntimeError as error:
            output.seek(0)
            raise RuntimeError(f"{error}:\n{output.read().decode()[-2000:]}") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise RuntimeError(f"expected a run that goes on, but it ended with {process.returncode}")
    time.sleep(PAUSE)


def _is_saved(folder: Path) -> bool:
    return any(folder.glob("*/checkpoints/*/commit_success.txt"))


def _last_update(folder: Path) -> int:
    """The last update that is logged in a study's folder; 0: none is."""
    files = folder.glob("maxpo*/metrics.jsonl")
    steps = [row["step"] for file in files for row in runs.read_metrics(file.parent)]
    return max(steps, default=0)
