"""Processes on hosts of their own, whose link goes down.

A file of its own, as it takes minutes in which little is computed: others run beside it.
"""

import time

import network_hosts
import pods
import pytest

from maxpo.runs import read_metrics


@pytest.fixture(autouse=True)
def no_child_is_left():
    yield
    pods.kill_all()


@pytest.mark.slow
def test_a_link_that_goes_down(tmp_path):
    """For ten seconds, at which nothing happens; and for good, at which all end and resume."""
    steps = 12
    flags = (*pods.flags_of(tmp_path), f"--config.rl.steps={steps}")
    with network_hosts.hosts(2) as hosts:
        children = pods.start(tmp_path, 2, *flags, hosts=hosts)
        pods.wait_for_line(children, tmp_path, 1)
        with hosts[1].link_down():
            time.sleep(10)
            stopped = len(read_metrics(tmp_path / "run" / pods.METHOD))
        pods.wait_for_line(children, tmp_path, stopped + 2)
        with hosts[1].link_down():
            codes = [child.wait(timeout=6 * pods.HEARTBEAT) for child in children]
        assert all(codes), (codes, pods.logs(tmp_path))
        saved = pods.last_saved(tmp_path)
        assert stopped + 1 <= saved < steps
        pods.finish(pods.start(tmp_path, 2, *flags, hosts=hosts), tmp_path)
    assert pods.resumed_from(tmp_path) == saved
    pods.assert_logged_once(tmp_path, steps)
