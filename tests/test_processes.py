"""Several processes on one machine train, die, resume and end as one process does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import parallel_child
import pods
import pytest
import simulated_devices

from maxpo.runs import read_metrics


@pytest.fixture(autouse=True)
def no_child_is_left():
    yield
    pods.kill_all()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return parallel_child.run_lm(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_processes_killed_and_resumed_end_as_one(alone, tmp_path):
    """First one of them is killed, then both."""
    flags = pods.flags_of(tmp_path)
    for victims in ([1], [0, 1]):
        children = pods.start(tmp_path, 2, *flags)
        done = len(read_metrics(tmp_path / "run" / pods.METHOD))
        pods.wait_for_line(children, tmp_path, done + 1)
        pods.kill(children, victims, tmp_path)
    pods.finish(pods.start(tmp_path, 2, *flags), tmp_path)
    pods.assert_trained_as_one(tmp_path, alone)


@pytest.mark.slow
def test_a_slice_that_loses_a_host_goes_on(alone, tmp_path):
    """Four processes lose one in the middle of a step; four, or two, go on as one would have."""
    flags = pods.flags_of(tmp_path)
    children = pods.start(tmp_path, 4, *flags)
    pods.wait_for_line(children, tmp_path, 2)  # The first step is saved before.
    pods.kill(children, [2], tmp_path)
    saved = pods.last_saved(tmp_path)
    for count in (4, 2):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "run", folder / "run")
        pods.finish(pods.start(folder, count, *flags), folder)
        assert pods.resumed_from(folder) == saved
        # Prompts and samples of every step are those of one process, or parameters would differ.
        pods.assert_trained_as_one(folder, alone)


@pytest.mark.slow
def test_a_sigterm_to_one_process_stops_all_after_the_same_step(alone, tmp_path):
    flags = (*pods.flags_of(tmp_path), f"--config.rl.save_every={parallel_child.STEPS}")
    children = pods.start(tmp_path, 2, *flags)
    pods.wait_for_line(children, tmp_path, 1)
    children[1].terminate()
    assert [child.wait(timeout=150) for child in children] == [143, 143], pods.logs(tmp_path)
    step = read_metrics(tmp_path / "run" / pods.METHOD)[-1]["step"]
    assert f"SIGTERM: saved step {step} in {tmp_path / 'run' / pods.METHOD};" in pods.logs(tmp_path)
    assert not (tmp_path / "run" / pods.METHOD / "summary.json").exists()
    pods.finish(pods.start(tmp_path, 2, *flags), tmp_path)
    pods.assert_trained_as_one(tmp_path, alone)


def test_processes_that_differ_are_refused(tmp_path):
    flags = pods.flags_of(tmp_path)
    address = simulated_devices.free_address()
    children = [
        *pods.start(tmp_path, 2, *flags, address=address, ids=[0]),
        *pods.start(tmp_path, 2, *flags, "--config.rl.steps=9", address=address, ids=[1]),
    ]
    codes = [child.wait(timeout=200) for child in children]
    assert codes == [2, 2], pods.logs(tmp_path)
    assert "all processes must have the same config" in pods.logs(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distributed"], "--distributed needs a --workdir that all processes share"),
        (["--distributed", "--workdir=w"], "--distributed: JAX found no cluster here; give"),
        (
            ["--distributed", "--workdir=w", "--num_processes=2"],
            "expected all three or none, got None, 2 and None",
        ),
        (
            ["--distributed", "--workdir=w", "--heartbeat_seconds=0"],
            "--heartbeat_seconds: expected at least 1, got 0",
        ),
    ],
)
def test_a_misconfigured_pod_is_told_so(flags, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bandit", *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("w").exists()
