"""SIGTERM saves after the step that is running, and what is resumed ends as if it had not come."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parallel_child
import pytest

from experiments import lm
from maxpo import runs

STEPS, EVERY = 6, 4
UPDATES = 20  # of the bandit, in seconds
ROOT = Path(__file__).parents[1]


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def train(folder: Path, hooks: dict[Any, Callable[[], None]], every: int = EVERY) -> Any:
    """A loop that calls a hook in the turn of its step, or when its name is reached."""
    with runs.Run({}, folder) as run:
        state, start = run.restore({"key": jax.random.key(0), "sum": jnp.zeros(3)})
        hooks.get("restored", int)()
        for step in runs.steps(start, STEPS):
            key, noise = jax.random.split(state["key"])
            state = {"key": key, "sum": state["sum"] + jax.random.normal(noise, (3,))}
            hooks.get(step, int)()
            run.log(step, {"sum": state["sum"]})
            if step % every == 0 or step == STEPS or run.stop_asked():
                run.save(step, state)
                hooks.get(f"saved {step}", int)()
        hooks.get("trained", int)()
        return run.finish({"sum": state["sum"]})


def preempt(folder: Path, *hooks: Any, every: int = EVERY) -> None:
    """Trains with a SIGTERM at each of the hooks; it must stop."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(runs.Preempted) as end, runs.preemptible():
        train(folder, dict.fromkeys(hooks, terminate), every)
    assert end.value.code == 143
    assert isinstance(end.value, SystemExit)
    assert signal.getsignal(signal.SIGTERM) is before


def checkpoints(folder: Path) -> list[int]:
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def assert_resumes_as_one(folder: Path, whole: Path) -> None:
    with runs.preemptible():
        train(folder, {})
    for name in ("metrics.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, {})
    return folder


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_the_step_that_is_running_is_saved(
    step: int, whole: Path, tmp_path: Path, capfd: Any
) -> None:
    preempt(tmp_path, step)
    assert checkpoints(tmp_path)[-1] == step
    assert runs.read_metrics(tmp_path) == runs.read_metrics(whole)[:step]
    printed = capfd.readouterr().err
    assert "SIGTERM: saving after this step; once more to end at once\n" in printed
    assert (
        f"SIGTERM: saved step {step} in {tmp_path}; start the same command again to go on\n"
    ) in printed
    assert_resumes_as_one(tmp_path, whole)


def test_a_run_that_is_stopped_in_every_step_ends_as_one(whole: Path, tmp_path: Path) -> None:
    for step in range(1, STEPS + 1):
        preempt(tmp_path, step)
    assert_resumes_as_one(tmp_path, whole)


@pytest.mark.parametrize(("where", "saved"), [("restored", []), ("trained", [4, 6])])
def test_outside_of_a_loop_it_ends_at_once_with_what_is_saved(
    where: str, saved: list[int], whole: Path, tmp_path: Path, capfd: Any
) -> None:
    preempt(tmp_path, where)
    assert checkpoints(tmp_path) == saved
    assert not (tmp_path / "summary.json").exists()
    assert "SIGTERM: stopped; start the same command again to go on from" in capfd.readouterr().err
    assert_resumes_as_one(tmp_path, whole)


@pytest.mark.parametrize(("step", "saved"), [(4, [4, 5]), (6, [4, 6])])
def test_after_a_save_it_is_the_next_that_ends(
    step: int, saved: list[int], whole: Path, tmp_path: Path
) -> None:
    preempt(tmp_path, f"saved {step}")  # The last one has no next.
    assert checkpoints(tmp_path) == saved
    assert_resumes_as_one(tmp_path, whole)


@pytest.mark.parametrize("step", [2, 3])
def test_a_loop_that_saves_nothing_ends_after_its_next_turn(step: int, capfd: Any) -> None:
    turns = []

    def loop() -> None:
        for turn in runs.steps(0, 3):
            turns.append(turn)
            if turn == step:
                terminate()

    with pytest.raises(runs.Preempted), runs.preemptible():
        loop()
    assert turns == [1, 2, 3]
    assert "SIGTERM: stopped" in capfd.readouterr().err


def test_a_second_one_has_its_default_action() -> None:
    actions = []

    def loop() -> None:
        for _ in runs.steps(0, 1):
            terminate()
            actions.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(runs.Preempted), runs.preemptible():
        loop()
    assert actions == [signal.SIG_DFL]


def test_blocks_in_blocks_and_in_other_threads_do_nothing() -> None:
    found = []

    def enter() -> None:
        with runs.preemptible():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    with runs.preemptible():
        ours = signal.getsignal(signal.SIGTERM)
        enter()
        assert signal.getsignal(signal.SIGTERM) is ours
    assert found == [before, ours]
    assert ours is not before


def test_without_the_block_nothing_changes(tmp_path: Path) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        train(tmp_path, {2: terminate})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_other_ends_of_the_block_keep_their_error() -> None:
    def fail() -> None:
        for _ in runs.steps(0, 1):
            terminate()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), runs.preemptible():
        fail()
    with runs.preemptible():  # The signal is forgotten.
        assert list(runs.steps(0, 1)) == [1]


def test_a_fork_ends_by_the_signal() -> None:
    program = (
        "import os, signal, time\n"
        "from maxpo import runs\n"
        "with runs.preemptible():\n"
        "    for _ in runs.steps(0, 1):\n"
        "        ready, begun = os.pipe()\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            os.write(begun, b'.')\n"
        "            time.sleep(60)\n"
        "            os._exit(0)\n"
        "        os.read(ready, 1)\n"  # A fork forgets the signals that come before it is ready.
        "        os.kill(child, signal.SIGTERM)\n"
        "        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def bandit(folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """The study as a program of its own, killed if it does not end in the block."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.bandit", "--config=configs/bandit.py:quick"),
            *("--config.methods=('grpo', 'maxpo:k=4')", f"--config.updates={UPDATES}"),
            *("--config.evaluate_every=1", "--config.variance_batches=4", f"--workdir={folder}"),
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def run_bandit(folder: Path) -> None:
    with bandit(folder) as child:
        _, printed = child.communicate(timeout=240)
        assert child.returncode == 0, printed


def run_program(folder: Path, text: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program of this text in a folder, with a `config.py` that has no fields."""
    program = folder / "program.py"
    program.write_text(text)
    (folder / "config.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"
    )
    return subprocess.run(
        [sys.executable, program, *flags],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_program_ends_whatever_its_threads_do(tmp_path: Path) -> None:
    program = (
        "import atexit, signal, threading, time\n"
        "from maxpo import runs\n"
        "def experiment(config, workdir):\n"
        "    atexit.register(print, 'at the end of Python')\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    print('stopping')\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "runs.main(experiment, default_config='config.py')\n"
    )
    done = run_program(tmp_path, program, "--workdir=run")
    assert done.returncode == 143, done.stderr
    assert done.stdout == "stopping\n"
    assert "SIGTERM: stopped" in done.stderr


@pytest.mark.parametrize("workdir", [["--workdir=run"], []])
@pytest.mark.parametrize("saves", [True, False])
def test_ctrl_c_ends_a_program_without_a_traceback(
    saves: bool, workdir: list[str], tmp_path: Path
) -> None:
    program = (
        "import signal\n"
        "from maxpo import runs\n"
        # A shell starts what goes on in its background without it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def experiment(config, workdir):\n"
        f"    if {saves}:\n"
        "        with runs.Run({}, workdir) as run:\n"
        "            state, _ = run.restore({'sum': 0.0})\n"
        "            run.log(1, {'loss': 0.0})\n"
        "            run.save(1, state)\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "runs.main(experiment, default_config='config.py')\n"
    )
    done = run_program(tmp_path, program, *workdir)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "Traceback" not in done.stderr
    folders = [*tmp_path.glob("run"), *tmp_path.glob("runs/*")]
    if not saves:
        assert not folders
        assert "interrupted" not in done.stderr
        return
    (folder,) = folders
    say = "start the same command again to go on from what was saved last"
    if not workdir:
        say = f"to go on from what was saved last add --workdir=runs/{folder.name}"
    assert done.stderr.endswith(f"\ninterrupted; {say}\n")
    assert checkpoints(folder) == [1]


@pytest.mark.slow
def test_an_experiment_exits_with_143_and_resumes_as_one(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with bandit(stopped) as child:
        deadline = time.monotonic() + 240
        while not checkpoints(stopped):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        _, printed = child.communicate(timeout=240)
    assert child.returncode == 143, printed
    (saved,) = map(int, re.findall(f"SIGTERM: saved step (.*) in {stopped}; start the", printed))
    assert "Traceback" not in printed
    assert checkpoints(stopped)[-1] == runs.read_metrics(stopped)[-1]["step"] == saved < UPDATES
    run_bandit(stopped)
    run_bandit(whole)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_language_model_is_stopped_in_both_of_its_loops(tmp_path: Path, monkeypatch: Any) -> None:
    config = parallel_child.make_lm_config(tmp_path / "inputs")
    config.sft.log_every = 1
    config.sft.save_every = config.rl.save_every = parallel_child.STEPS
    lm.train_and_evaluate(config, tmp_path / "whole")
    ends = [(stage, step) for stage in ("sft", parallel_child.METHOD) for step in (1, 3)]
    left = list(ends)
    log = runs.Run.log

    def log_and_terminate(run: runs.Run, step: int, metrics: Any) -> None:
        log(run, step, metrics)
        if (run.folder.name, step) in left:
            left.remove((run.folder.name, step))
            terminate()

    monkeypatch.setattr(runs.Run, "log", log_and_terminate)
    for stage, step in ends:
        with pytest.raises(runs.Preempted), runs.preemptible():
            lm.train_and_evaluate(config, tmp_path / "stopped")
        assert checkpoints(tmp_path / "stopped" / stage) == [step]
    lm.train_and_evaluate(config, tmp_path / "stopped")
    for stage in ("sft", parallel_child.METHOD):
        for name in ("metrics.jsonl", "summary.json"):
            stopped, whole = (tmp_path / run / stage / name for run in ("stopped", "whole"))
            assert stopped.read_bytes() == whole.read_bytes()
    states = [
        parallel_child.leaves(parallel_child.last_state(config, tmp_path / run))
        for run in ("stopped", "whole")
    ]
    for stopped, whole in zip(*states, strict=True):
        assert stopped.tobytes() == whole.tobytes()


def test_main_says_how_to_go_on_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.py").write_text("from ml_collections import ConfigDict as get_config\n")

    def study(config: Any, workdir: Path) -> None:
        train(workdir, {3: terminate})

    with pytest.raises(SystemExit) as end:
        runs.main(study, default_config="demo.py", argv=["demo", "--nocompilation_cache"])
    assert end.value.code == 143
    (folder,) = Path("runs").iterdir()
    assert capfd.readouterr().err.endswith(f"to go on from there add --workdir={folder}\n")
    assert checkpoints(folder)[-1] == 3
    assert np.isfinite(runs.read_metrics(folder)[-1]["sum"]).all()
