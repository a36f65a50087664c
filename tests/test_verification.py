"""Verification: order, failures of single samples, and processes that end when they should."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import verifiers

from maxpo.tasks.text import Problem
from maxpo.verification import FAILURES, Scores, VerifierPool

TIME_LIMIT = 0.5


def problem(number: float = 0.0) -> Problem:
    return Problem("", "", {"number": number})


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    jnp.ones(3).block_until_ready()  # A parent whose JAX has threads.
    with VerifierPool(verifiers.obey, workers=2, time_limit=TIME_LIMIT) as pool:
        yield pool


def score(pool: VerifierPool, *completions: str) -> Scores:
    return pool.submit([problem()], [completions]).result()


def pids(pool: VerifierPool) -> list[int]:
    return [worker._process.pid for worker in pool._workers]


def runs(pid: int) -> bool:
    """Whether a process is there; one that has ended but was not waited for is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < end, f"still running: {alive}"
        time.sleep(0.05)


@pytest.mark.parametrize(("P", "N"), [(1, 1), (3, 7), (2, 70), (0, 0), (2, 0)])
def test_rewards_come_in_order(pool, P, N):
    offsets = 1000.0 * np.arange(P)
    completions = [[str(i) for i in range(N)] for _ in range(P)]
    scores = pool.submit([problem(offset) for offset in offsets], completions).result()
    np.testing.assert_array_equal(scores.rewards, (offsets[:, None] + np.arange(N)).reshape(P, N))
    assert scores.rewards.dtype == np.float32
    assert scores.valid.shape == (P, N)
    assert scores.valid.all()
    assert scores.failures == dict.fromkeys(FAILURES, 0)


def test_several_batches_at_a_time(pool):
    pending = [pool.submit([problem(float(i))], [["1"] * 4]) for i in range(5)]
    for i in reversed(range(5)):
        np.testing.assert_array_equal(pending[i].result().rewards, [[i + 1.0] * 4])


def test_equal_completions_of_two_problems_are_apart(pool):
    scores = pool.submit([problem(1.0), problem(2.0)], [["5", "5"], ["5", "5"]]).result()
    np.testing.assert_array_equal(scores.rewards, [[6, 6], [7, 7]])


@pytest.mark.parametrize(
    ("completion", "reward"), [("bool", 1.0), ("integer", 3.0), ("numpy", 0.25), ("-2", -2.0)]
)
def test_kinds_of_numbers(pool, completion, reward):
    scores = score(pool, completion)
    assert scores.rewards.tolist() == [[reward]]
    assert scores.valid.all()


@pytest.mark.parametrize(
    ("completion", "failure"),
    [
        ("raise", "raised"),
        ("sys.exit", "raised"),
        ("os._exit", "raised"),
        ("killed", "raised"),
        ("list", "raised"),
        ("not a number", "raised"),
        ("nan", "not_finite"),
        ("inf", "not_finite"),
        ("beyond float32", "not_finite"),
        ("text", "not_finite"),
        ("none", "not_finite"),
        ("sleep", "timed_out"),
        ("loop", "timed_out"),
        ("swallow", "timed_out"),
        ("ignore signals", "timed_out"),
        ("hold interpreter", "timed_out"),
    ],
)
def test_a_failure_is_of_its_sample_alone(pool, completion, failure):
    scores = score(pool, "1", completion, "2", "3")
    assert scores.rewards.tolist() == [[1, 0, 2, 3]]
    assert scores.valid.tolist() == [[True, False, True, True]]
    assert scores.failures == {**dict.fromkeys(FAILURES, 0), failure: 1}
    assert scores.message


def test_every_failing_sample_is_counted(pool):
    scores = score(pool, "raise", "nan", "raise", "1", "os._exit", "os._exit")
    assert scores.valid.tolist() == [[False, False, False, True, False, False]]
    assert scores.failures == {"raised": 4, "timed_out": 0, "not_finite": 1}


def test_the_message_is_that_of_the_first_failure(pool):
    scores = pool.submit(
        [problem()] * 3, [["1", "1", "1"], ["1", "raise", "nan"], ["none", "raise", "sys.exit"]]
    ).result()
    assert "ValueError: as told" in scores.message
    assert score(pool, "1", "nan", "raise").message == "the reward was nan"
    assert score(pool, "1").message == ""


def test_a_verifier_that_takes_the_timer_away_leaves_the_next_sample_its_limit(pool):
    scores = score(pool, "timer of its own", "sleep", "1")
    assert scores.rewards.tolist() == [[1, 0, 1]]
    assert scores.failures["timed_out"] == 1


@pytest.fixture(scope="module")
def meeting_pool() -> Iterator[VerifierPool]:
    with VerifierPool(verifiers.meet, workers=2, time_limit=10.0) as pool:
        yield pool


def test_submit_does_not_wait(meeting_pool, tmp_path):
    place = Problem("", "", {"folder": str(tmp_path)})
    pending = meeting_pool.submit([place], [["verifier meets test"]])
    (tmp_path / "test").touch()
    assert pending.result().valid.all()


def test_two_workers_work_at_the_same_time(meeting_pool, tmp_path):
    place = Problem("", "", {"folder": str(tmp_path)})
    scores = meeting_pool.submit([place, place], [["a meets b"], ["b meets a"]]).result()
    assert scores.valid.all()


def test_workers_see_no_accelerator(pool):
    assert score(pool, "platform").rewards.tolist() == [[1.0]]


def test_a_worker_killed_while_idle_costs_nothing(pool):
    score(pool, "1")
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    wait_until_gone(pids(pool), 5.0)
    scores = pool.submit([problem()] * 4, [["1"]] * 4).result()
    assert scores.valid.all()
    assert scores.failures["raised"] == 0


@pytest.mark.parametrize("time_limit", [0.0, -1.0, float("inf"), float("nan")])
def test_time_limit_out_of_range(time_limit):
    with pytest.raises(ValueError, match="time_limit must be positive and finite"):
        VerifierPool(verifiers.obey, workers=1, time_limit=time_limit)


def test_no_workers():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        VerifierPool(verifiers.obey, workers=0, time_limit=1.0)


def test_verifier_that_cannot_be_pickled():
    with pytest.raises(ValueError, match="must be picklable"):
        VerifierPool(lambda problem, completion: 1.0, workers=1, time_limit=1.0)


def test_verifier_of_the_program_itself(monkeypatch):
    def verify(problem: Problem, completion: str) -> float:
        raise NotImplementedError

    verify.__module__, verify.__qualname__ = "__main__", "verify"
    monkeypatch.setattr(sys.modules["__main__"], "verify", verify, raising=False)
    with pytest.raises(ValueError, match="defined in a module that workers can import"):
        VerifierPool(verify, workers=1, time_limit=1.0)


def test_verifier_that_workers_cannot_load():
    with VerifierPool(verifiers.Unloadable(), workers=1, time_limit=1.0) as pool:
        with pytest.raises(RuntimeError, match="could not load the verifier") as error:
            score(pool, "1")
        assert "ValueError: as told" in str(error.value)


def test_problem_that_cannot_be_pickled(pool):
    pending = pool.submit([Problem("", "", {"number": lambda: 0})], [["1"]])
    with pytest.raises(RuntimeError, match=r"not scored: .*pickle"):
        pending.result()
    assert score(pool, "1").valid.all()


@pytest.mark.parametrize("completions", [[["1"]], [["1"], ["1", "2"]]])
def test_groups_that_do_not_fit(pool, completions):
    with pytest.raises(ValueError, match="one group of completions for each problem, all of one"):
        pool.submit([problem(), problem()], completions)


def test_close_ends_everything():
    pool = VerifierPool(verifiers.obey, workers=2, time_limit=60.0)
    score(pool, "1")
    pending = [pool.submit([problem()], [["hold interpreter"]]) for _ in range(3)]
    processes = pids(pool)
    pool.close()
    pool.close()
    wait_until_gone(processes, 0.0)
    for each in pending:
        with pytest.raises(RuntimeError, match="the pool was closed"):
            each.result()
    with pytest.raises(RuntimeError, match="the pool is closed"):
        score(pool, "1")


def test_a_dropped_pool_ends_its_processes():
    pool = VerifierPool(verifiers.obey, workers=1, time_limit=1.0)
    processes = pids(pool)
    del pool
    gc.collect()
    wait_until_gone(processes, 0.0)


# No guard of __main__: workers must not run the program a second time.
PROGRAM = """
import verifiers
from maxpo.tasks.text import Problem
from maxpo.verification import VerifierPool

pool = VerifierPool(verifiers.obey, workers=2, time_limit=TIME_LIMIT)
problem = Problem("", "", {"number": 0})
pool.submit([problem] * 8, [["1"] * 4] * 8).result()
pending = pool.submit([problem], [["hold interpreter"]])
print(*(worker._process.pid for worker in pool._workers), flush=True)
pending.result() if WAIT else None
"""


def start_program(*, time_limit: float, wait: bool) -> tuple[subprocess.Popen, list[int]]:
    program = PROGRAM.replace("TIME_LIMIT", str(time_limit)).replace("WAIT", str(wait))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_killed_parent_leaves_no_process_behind():
    process, workers = start_program(time_limit=1.0, wait=True)
    assert len(workers) == 2
    with process:
        time.sleep(0.2)  # The verifier is at work.
        process.kill()
    wait_until_gone(workers, 10.0)


def test_interrupted_parent_ends_at_once():
    process, workers = start_program(time_limit=600.0, wait=True)
    with process:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    wait_until_gone(workers, 5.0)


def test_program_that_ends_without_closing_the_pool():
    process, workers = start_program(time_limit=600.0, wait=False)
    with process:
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    wait_until_gone(workers, 5.0)
