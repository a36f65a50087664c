"""Several processes on one machine train, die, resume and end as one process does."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import network_hosts
import numpy as np
import parallel_child
import pytest
import simulated_devices

from maxpo.runs import read_metrics

CHILD = Path(parallel_child.__file__)
METHOD = parallel_child.METHOD
# After it the others know that one has died. Sent at half of that time: one that a link of ten
# seconds loses comes again within 13 seconds, by TCP.
HEARTBEAT = 40
_children = []


@pytest.fixture(autouse=True)
def no_child_is_left():
    """A test that fails leaves processes that wait for each other, or work on."""
    yield
    for child in _children:
        child.kill()
        child.wait()
    _children.clear()


def start(folder, count, *flags, address=None, ids=None, hosts=None):
    """Starts processes with one device each, as the command line of a pod does.

    Each on a host of its own, where there are hosts.
    """
    address = address or (f"{hosts[0].address}:4321" if hosts else None)
    address = address or simulated_devices.free_address()
    environment = simulated_devices.environment(1)
    children = []
    for number in range(count) if ids is None else ids:
        command = [
            *(hosts[number].enter if hosts else ()),
            *(sys.executable, "-m", "experiments.lm", f"--config={CHILD}"),
            *("--distributed", f"--coordinator_address={address}"),
            *(f"--num_processes={count}", f"--process_id={number}"),
            *(f"--workdir={folder / 'run'}", f"--heartbeat_seconds={HEARTBEAT}", *flags),
        ]
        with (folder / f"log{number}").open("a") as log:
            children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    _children.extend(children)
    return children


def logs(folder):
    return "\n".join(f"{path}:\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("log*")))


def finish(children, folder):
    codes = [child.wait(timeout=600) for child in children]
    assert codes == [0] * len(children), logs(folder)


def flags_of(folder):
    config = parallel_child.make_lm_config(folder / "inputs")
    return (
        f"--config.task.train_path={config.task.train_path}",
        f"--config.task.held_out_path={config.task.held_out_path}",
    )


def parameters(folder):
    config = parallel_child.make_lm_config(folder / "inputs")
    return parallel_child.leaves(parallel_child.last_state(config, folder / "run").params)


def assert_trained_as_one(folder, alone):
    for ours, theirs in zip(parameters(folder), alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)
    assert_logged_once(folder, parallel_child.STEPS)


def assert_logged_once(folder, steps):
    """Process 0 alone writes, and nothing is lost or done twice."""
    logged = [row["step"] for row in read_metrics(folder / "run" / METHOD)]
    assert logged == list(range(1, steps + 1))


def wait_for_line(children, folder, count):
    """Waits until the metrics have so many lines, while all processes go on."""
    deadline = time.monotonic() + 600
    while len(read_metrics(folder / "run" / METHOD)) < count:
        assert all(child.poll() is None for child in children), logs(folder)
        assert time.monotonic() < deadline, logs(folder)
        time.sleep(0.01)


def last_saved(folder):
    names = [path.name for path in (folder / "run" / METHOD / "checkpoints").glob("*")]
    return max(int(name) for name in names if name.isdigit())


def resumed_from(folder):
    """The step from which the last start of process 0 went on with the method."""
    found = re.findall(rf"resuming .*/{METHOD} after step (\d+)", (folder / "log0").read_text())
    return int(found[-1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return parallel_child.run_lm(tmp_path_factory.mktemp("alone"))


def kill(children, victims, folder):
    """Kills some of them, at which the others must end by themselves, without an end of the run."""
    for victim in victims:
        children[victim].kill()
    codes = [child.wait(timeout=150) for child in children]
    assert all(codes[victim] == -signal.SIGKILL for victim in victims)
    assert all(code != 0 for code in codes), (codes, logs(folder))
    assert not (folder / "run" / "summary.json").exists()


@pytest.mark.slow
def test_processes_killed_and_resumed_end_as_one(alone, tmp_path):
    """First one of them is killed, then both."""
    flags = flags_of(tmp_path)
    for victims in ([1], [0, 1]):
        children = start(tmp_path, 2, *flags)
        done = len(read_metrics(tmp_path / "run" / METHOD))
        wait_for_line(children, tmp_path, done + 1)
        kill(children, victims, tmp_path)
    finish(start(tmp_path, 2, *flags), tmp_path)
    assert_trained_as_one(tmp_path, alone)


@pytest.mark.slow
def test_a_slice_that_loses_a_host_goes_on(alone, tmp_path):
    """Four processes lose one in the middle of a step; four, or two, go on as one would have."""
    flags = flags_of(tmp_path)
    children = start(tmp_path, 4, *flags)
    wait_for_line(children, tmp_path, 2)  # The first step is saved before.
    kill(children, [2], tmp_path)
    saved = last_saved(tmp_path)
    for count in (4, 2):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "run", folder / "run")
        finish(start(folder, count, *flags), folder)
        assert resumed_from(folder) == saved
        # Prompts and samples of every step are those of one process, or parameters would differ.
        assert_trained_as_one(folder, alone)


@pytest.mark.slow
def test_a_sigterm_to_one_process_stops_all_after_the_same_step(alone, tmp_path):
    flags = (*flags_of(tmp_path), f"--config.rl.save_every={parallel_child.STEPS}")
    children = start(tmp_path, 2, *flags)
    wait_for_line(children, tmp_path, 1)
    children[1].terminate()
    assert [child.wait(timeout=150) for child in children] == [143, 143], logs(tmp_path)
    step = read_metrics(tmp_path / "run" / METHOD)[-1]["step"]
    assert f"SIGTERM: saved step {step} in {tmp_path / 'run' / METHOD};" in logs(tmp_path)
    assert not (tmp_path / "run" / METHOD / "summary.json").exists()
    finish(start(tmp_path, 2, *flags), tmp_path)
    assert_trained_as_one(tmp_path, alone)


@pytest.mark.slow
def test_a_link_that_goes_down(tmp_path):
    """For ten seconds, at which nothing happens; and for good, at which all end and resume."""
    steps = 12
    flags = (*flags_of(tmp_path), f"--config.rl.steps={steps}")
    with network_hosts.hosts(2) as hosts:
        children = start(tmp_path, 2, *flags, hosts=hosts)
        wait_for_line(children, tmp_path, 1)
        with hosts[1].link_down():
            time.sleep(10)
            stopped = len(read_metrics(tmp_path / "run" / METHOD))
        wait_for_line(children, tmp_path, stopped + 2)
        with hosts[1].link_down():
            codes = [child.wait(timeout=6 * HEARTBEAT) for child in children]
        assert all(codes), (codes, logs(tmp_path))
        saved = last_saved(tmp_path)
        assert stopped + 1 <= saved < steps
        finish(start(tmp_path, 2, *flags, hosts=hosts), tmp_path)
    assert resumed_from(tmp_path) == saved
    assert_logged_once(tmp_path, steps)


def test_processes_that_differ_are_refused(tmp_path):
    flags = flags_of(tmp_path)
    address = simulated_devices.free_address()
    children = [
        *start(tmp_path, 2, *flags, address=address, ids=[0]),
        *start(tmp_path, 2, *flags, "--config.rl.steps=9", address=address, ids=[1]),
    ]
    codes = [child.wait(timeout=200) for child in children]
    assert codes == [2, 2], logs(tmp_path)
    assert "all processes must have the same config" in logs(tmp_path)
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
