"""Verification: order, failures of single samples, and processes that end when they should."""

import contextlib
import gc
import os
import re
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

from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.verification import FAILURES, Scores, VerifierPool

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


# Samples that execute what a model wrote.

RIGHT, WRONG = "answer = 7", "answer = 8"


@pytest.fixture(scope="module")
def executing_pool() -> Iterator[VerifierPool]:
    """One worker, so that samples meet all that is left of others."""
    with VerifierPool(verifiers.execute, workers=1, time_limit=5.0, memory_limit=0.1) as pool:
        yield pool


def execute(pool: VerifierPool, *programs: str, folder: Path | None = None) -> Scores:
    entry = {"number": 7, "folder": str(folder)}
    return pool.submit([Problem("", "", entry)], [programs]).result()


def check_others(scores: Scores) -> None:
    """Of a right answer, an attack, a wrong and a right one."""
    assert scores.rewards[0, [0, 2, 3]].tolist() == [1, 0, 1]
    assert scores.valid[0, [0, 2, 3]].all()


@pytest.mark.parametrize(
    "attack",
    [
        "import verifiers; verifiers.execute.__code__ = (lambda p, c: 1.0).__code__",
        "import numpy; numpy.float32 = lambda x: 1.0",
        "import builtins; builtins.sum = lambda x: 1.0",
        "import builtins; builtins.float = builtins.isinstance = lambda *x: 1.0",
        "import builtins; builtins.__dict__.clear()",
        "import sys; sys.modules.clear()",
        "import os, time; os.write = os._exit = os.getpid = time.monotonic = lambda *x: 1",
        "import maxpo.lm.tasks._verification_worker as w; w._score = lambda *x: (3, 1.0, b'')",
        "import gc\nfor x in gc.get_objects():\n  if type(x) is dict: x.clear()",
        # A small integer, for the whole interpreter.
        "import ctypes; ctypes.c_long.from_address(id(8) + 24).value = 7",
    ],
)
def test_what_a_sample_changes_is_gone_for_the_next(executing_pool, attack):
    check_others(execute(executing_pool, RIGHT, attack + "\nanswer = 7", WRONG, RIGHT))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("os.chdir('/')", "os.getcwd() == '/'"),
        ("os.environ['CHANGED'] = '1'", "'CHANGED' in os.environ"),
        ("os.umask(0o123)", "os.umask(0) == 0o123"),
        ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "signal.getsignal(signal.SIGUSR1) == 1"),
        ("signal.pthread_sigmask(0, [signal.SIGALRM])", "signal.pthread_sigmask(0, [])"),
        (
            "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))",
            "resource.getrlimit(resource.RLIMIT_NOFILE)[1] == 99",
        ),
        ("random.seed(5)", "random.random() == random.Random(5).random()"),
        ("threading.Thread(target=time.sleep, args=(60,)).start()", "threading.active_count() > 1"),
        ("sys.path.append('nowhere')", "'nowhere' in sys.path"),
        ("os.open('/dev/null', 0)", "len(os.listdir('/proc/self/fd')) > usual"),
    ],
)
def test_the_state_of_a_process_is_that_of_one_sample(executing_pool, change, what):
    imports = "import os, random, resource, signal, sys, threading, time\n"
    count = "reward = len(os.listdir('/proc/self/fd'))"
    usual = execute(executing_pool, imports + count).rewards.item()
    probe = f"{imports}usual = {usual}; reward = bool({what})"
    scores = execute(executing_pool, probe, f"{imports}{change}\n{probe} ", f"{probe}  ")
    assert scores.rewards.tolist() == [[0, 1, 0]]
    assert scores.valid.all()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("import os; os._exit(0)", "the process ended without an answer: exit status 0"),
        ("import os; os.abort()", "the process ended without an answer: signal 6"),
        ("import os; os.kill(os.getppid(), 9)", "its worker ended"),
        ("import os; os.killpg(0, 9)", "the process ended without an answer: signal 9"),
        ("import ctypes; ctypes.string_at(0)", "the process ended without an answer: signal 11"),
        ("class Odd(BaseException):\n  def __str__(self): raise self\nraise Odd", "Odd"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
        ("raise ValueError('\\udcff')", "ValueError"),
        ("import os; os.closerange(0, 1000); answer = 7", "exit status 1"),
        ("import os, time; os.closerange(0, 1000); time.sleep(60)", "signal 9"),
        (
            "import os\nfor i in range(1000):\n"
            "  try: os.write(i, bytes(4096))\n  except OSError: pass\nanswer = 7",
            "it wrote to a descriptor that is not its own",
        ),
        ("x = bytearray(2**30)", r"MemoryError[\s\S]*memory_limit is 0.1 GiB"),
        ("x = []\nwhile True: x.append(str(len(x)) * 9)", "MemoryError"),
        ("import numpy; x = numpy.ones(2**27)", r"MemoryError[\s\S]*memory_limit is 0.1 GiB"),
        ("import os\nif os.fork(): os._exit(0)\nimport time; time.sleep(60)", "exit status 0"),
        ("import os; os.fork() and os._exit(3); answer = 7", "exit status 3"),
        ("class X:\n  def __float__(self): raise RuntimeError('odd')\nreward = X()", "odd"),
        ("class X:\n  def __float__(self): return '1'\nreward = X()", "non-float"),
        ("class X(str):\n  def __float__(self): return 1.\nreward = X('1')", "reward was '1'"),
        ("reward = 10 ** 400", "the reward was inf"),
        ("reward = memoryview(b'1')", "the reward was <memory"),
        ("reward = 1j", "TypeError"),
    ],
)
def test_a_sample_that_goes_wrong_fails_alone(executing_pool, attack, message):
    scores = execute(executing_pool, RIGHT, attack, WRONG, RIGHT)
    check_others(scores)
    assert not scores.valid[0, 1]
    assert sum(scores.failures.values()) == 1
    assert re.search(message, scores.message)
    assert len(scores.message) < 5000


@pytest.mark.parametrize(
    "harmless",
    [
        "import os; os.fork()",
        "import os; [os.fork() for _ in range(4)]",
        "import os, sys; sys.stdout.write('x' * 10**6); os.write(2, b'x' * 10**6)",
        "import sys; sys.stdin.read()",
        "import warnings; warnings.warn('x')",
    ],
)
def test_what_harms_nobody_is_scored(executing_pool, harmless, capfd):
    scores = execute(executing_pool, WRONG, harmless + "; answer = 7", WRONG + " ", RIGHT)
    assert scores.rewards.tolist() == [[0, 1, 0, 1]]
    assert scores.valid.all()
    assert capfd.readouterr() == ("", "")


SLEEPER = """
import os, signal, subprocess, time
note = lambda pid: open(folder + "/pids", "a").write(f"{pid}\\n")
"""
DAEMONS = {
    "child": "note(subprocess.Popen(['sleep', '60']).pid)",
    "own group": "note(subprocess.Popen(['sleep', '60'], process_group=0).pid)",
    "own session": "note(subprocess.Popen(['sleep', '60'], start_new_session=True, env={}).pid)",
    "daemon": """
if not os.fork():
    os.setsid()
    if not os.fork():
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
        note(os.getpid())
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(0.2)""",
    "many": """
for _ in range(20):
    if not os.fork():
        os.setsid()
        note(os.getpid())
        time.sleep(60)
time.sleep(0.2)""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER")
@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("end", ["answer = 7", "raise ValueError", "os._exit(0)"])
def test_no_process_outlives_its_sample(executing_pool, daemon, end, tmp_path):
    attack = f"{SLEEPER}{DAEMONS[daemon]}\n{end}"
    look = "import os; pids = open(folder + '/pids').read().split()\n"
    look += "reward = sum(os.path.exists(f'/proc/{pid}') for pid in pids) + 1 / len(pids)"
    scores = execute(executing_pool, RIGHT, attack, look, folder=tmp_path)
    assert scores.rewards[0, 2] == np.float32(1 / (20 if daemon == "many" else 1))
    assert scores.valid[0].tolist() == [True, end == "answer = 7", True]


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER")
@pytest.mark.parametrize("how", ["closed", "program killed", "worker killed"])
def test_no_process_outlives_the_pool(how, tmp_path):
    attack = f"{SLEEPER}{DAEMONS['daemon']}\nnote(os.getpid())\ntime.sleep(60)"
    entry = {"number": 7, "folder": str(tmp_path)}

    def wait_for_pids() -> list[int]:
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(FileNotFoundError):
                if len(found := (tmp_path / "pids").read_text().split()) == 2:
                    return [int(pid) for pid in found]
            assert time.monotonic() < end
            time.sleep(0.02)

    if how == "program killed":
        program = f"""
import verifiers
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.verification import VerifierPool

pool = VerifierPool(verifiers.execute, workers=1, time_limit=600.0)
pool.submit([Problem("", "", {entry!r})], [[{attack!r}]]).result()
"""
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with process:
            started = wait_for_pids()
            process.kill()
        wait_until_gone(started, 10.0)
        return
    with VerifierPool(verifiers.execute, workers=1, time_limit=600.0) as pool:
        pending = pool.submit([Problem("", "", entry)], [[attack, RIGHT]])
        started = wait_for_pids()
        if how == "worker killed":
            os.kill(pids(pool)[0], signal.SIGKILL)
            assert pending.result().rewards.tolist() == [[0, 1]]
            wait_until_gone(started, 0.0)
    wait_until_gone(started, 0.0)


def test_a_verifier_for_which_completions_are_text_shares_processes():
    texts = [str(i) for i in range(8)]
    with VerifierPool(verifiers.state, workers=1, time_limit=0.5) as pool:
        processes = score(pool, *texts).rewards[0].tolist()
        assert len(set(processes)) == 3  # Of chunks of 3, 3 and 2.
        assert processes == sorted(processes, key=processes.index)
        # One chunk, for it is at the front of a batch of 1 + 24 / 4.
        scores = score(pool, "1", "os._exit", "2", "hold interpreter", "raise", "3", *["4"] * 18)
        assert scores.valid[0, :6].tolist() == [True, False, True, False, False, True]
        assert scores.failures == {"raised": 2, "timed_out": 1, "not_finite": 0}
        assert len(set(scores.rewards[0, [0, 2, 5]].tolist())) == 3
    with VerifierPool(verifiers.wrapped_state, workers=1, time_limit=5.0) as pool:
        assert len(set(score(pool, *texts).rewards[0].tolist())) == 8


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


def test_what_forks_is_small(executing_pool):
    absent = "import sys; answer = 7 * ('jax' not in sys.modules)"
    assert execute(executing_pool, absent).rewards.tolist() == [[1.0]]
    assert len([*Path(f"/proc/{pids(executing_pool)[0]}/task").iterdir()]) == 1


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
    with pytest.raises(ValueError, match="time_limit: expected a positive and finite number"):
        VerifierPool(verifiers.obey, workers=1, time_limit=time_limit)


@pytest.mark.parametrize("memory_limit", [0.0, -1.0, float("inf"), float("nan")])
def test_memory_limit_out_of_range(memory_limit):
    with pytest.raises(ValueError, match="memory_limit: expected a positive and finite number"):
        VerifierPool(verifiers.obey, workers=1, time_limit=1.0, memory_limit=memory_limit)


def test_no_workers():
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        VerifierPool(verifiers.obey, workers=0, time_limit=1.0)


def test_verifier_that_cannot_be_pickled():
    with pytest.raises(ValueError, match="verifier: expected something picklable"):
        VerifierPool(lambda problem, completion: 1.0, workers=1, time_limit=1.0)


def test_verifier_of_the_program_itself(monkeypatch):
    def verify(problem: Problem, completion: str) -> float:
        raise NotImplementedError

    verify.__module__, verify.__qualname__ = "__main__", "verify"
    monkeypatch.setattr(sys.modules["__main__"], "verify", verify, raising=False)
    with pytest.raises(ValueError, match="expected one of a module that workers can import"):
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
import signal
import verifiers
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.verification import VerifierPool

# What a shell starts in the background ignores it, and so do all that come from there.
signal.signal(signal.SIGINT, signal.default_int_handler)
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
