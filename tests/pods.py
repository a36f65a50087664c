"""Processes that train together, as the command line of a pod starts them."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import parallel_child
import simulated_devices

from maxpo.runs import read_metrics

CHILD = Path(parallel_child.__file__)
METHOD = parallel_child.METHOD
# After it the others know that one has died. Sent at half of that time: one that a link of ten
# seconds loses comes again within 13 seconds, by TCP.
HEARTBEAT = 40
_children = []


def kill_all():
    """Ends what a test that failed has left: processes that wait for each other, or work on."""
    for child in _children:
        child.kill()
        child.wait()
    _children.clear()


def start(folder, count, *flags, address=None, ids=None, hosts=None):
    """Starts processes with one device each.

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


def kill(children, victims, folder):
    """Kills some of them, at which the others must end by themselves, without an end of the run."""
    for victim in victims:
        children[victim].kill()
    codes = [child.wait(timeout=150) for child in children]
    assert all(codes[victim] == -signal.SIGKILL for victim in victims)
    assert all(code != 0 for code in codes), (codes, logs(folder))
    assert not (folder / "run" / "summary.json").exists()
