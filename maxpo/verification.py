"""Scores completions in other processes, while the device works.

A verifier is code that nobody has checked, run on text that a model made up. So it runs in worker
processes, each sample under a time limit, and whatever it does there fails that sample alone.

Workers are new interpreters, not forks: JAX has threads, which a fork does not survive. They do not
import the program that started them, as those of `multiprocessing` do, so they start in about a
second.
"""

import contextlib
import faulthandler
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np

from maxpo.tasks.text import Problem, Verifier

FAILURES = ("raised", "timed_out", "not_finite")

# Completions of a problem that a worker gets at a time, at most. Fewer where there are few, so that
# each worker has some.
_CHUNK = 32
# Seconds that a worker has after the time limit to give up a sample by itself.
_GRACE = 1.0


class Scores(NamedTuple):
    """Rewards of P groups of N completions.

    Attributes:
      rewards: `[P, N]`, float32; 0 where a sample failed.
      valid: `[P, N]`, False where it failed.
      failures: How many samples failed, for each of `FAILURES`: the verifier raised or its process
        died; it took longer than the time limit; its reward was no finite float32.
      message: What went wrong with the first sample that failed, for a person to read; "" where
        none did.
    """

    rewards: np.ndarray
    valid: np.ndarray
    failures: dict[str, int]
    message: str = ""


class PendingScores:
    """Scores that are being worked out."""

    def __init__(self, shape: tuple[int, int]):
        self._scores = Scores(
            np.zeros(shape, np.float32), np.zeros(shape, bool), dict.fromkeys(FAILURES, 0)
        )
        self._message = ""
        self._left = math.prod(shape)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        if self._left == 0:
            self._done.set()

    def result(self) -> Scores:
        """Waits for the scores.

        Raises:
          RuntimeError: if no worker could be started, or the pool was closed before the end.
        """
        self._done.wait()
        if self._error is not None:
            raise RuntimeError(f"completions were not scored: {self._error}") from self._error
        return self._scores._replace(message=self._message)

    def _record(self, row: int, column: int, outcome: "_Outcome") -> None:
        with self._lock:
            if outcome.failure is None:
                self._scores.rewards[row, column] = outcome.reward
                self._scores.valid[row, column] = True
            else:
                self._scores.failures[outcome.failure] += 1
                self._message = self._message or outcome.message
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._done.set()


class VerifierPool:
    """A pool of processes that score completions. A context manager.

    Equal completions of one problem may be scored once.

    Args:
      verifier: A picklable function of a problem and a completion.
      workers: Number of processes. They see no accelerator, only the CPU.
      time_limit: Seconds for each sample. A Python signal ends it then; code that ignores signals
        is killed a second later, with its process, which is replaced.

    Raises:
      ValueError: if an argument is out of range, or the verifier is not picklable.

    Example::

        with VerifierPool(task.verifier, workers=2, time_limit=1.0) as pool:
            pending = pool.submit(problems, completions)
            ...                              # the device works on something else
            rewards, valid, failures = pending.result()
    """

    def __init__(self, verifier: Verifier, *, workers: int, time_limit: float):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if not 0 < time_limit < math.inf:
            raise ValueError(f"time_limit must be positive and finite, got {time_limit}")
        setup = pickle.dumps((_pickled(verifier), time_limit))
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._workers = [_Worker(self._chunks, setup, time_limit) for _ in range(workers)]
        # Also at the interpreter's end, or when a pool is dropped without being closed.
        self._finalizer = weakref.finalize(self, _close, self._workers, self._chunks)

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes at once. Scores that are still pending will never come."""
        self._finalizer()

    @property
    def last_failure(self) -> str | None:
        """What went wrong last, for a person to read; None at first."""
        failures = [worker.last_failure for worker in self._workers if worker.last_failure]
        return max(failures)[1] if failures else None

    def submit(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
    ) -> PendingScores:
        """Starts to score P groups of N completions, and returns at once.

        Args:
          problems: P problems.
          completions: `[P][N]` texts, a group for each problem.

        Raises:
          RuntimeError: if the pool is closed.
          ValueError: if the lengths do not fit.
        """
        if not self._finalizer.alive:
            raise RuntimeError("the pool is closed")
        sizes = sorted({len(group) for group in completions})
        if len(problems) != len(completions) or len(sizes) > 1:
            raise ValueError(
                "expected one group of completions for each problem, all of one size, got"
                f" {len(problems)} problems and {len(completions)} groups of sizes {sizes}"
            )
        shape = (len(problems), sizes[0] if sizes else 0)
        pending = PendingScores(shape)
        size = min(_CHUNK, 1 + math.prod(shape) // (4 * len(self._workers)))
        for row, (problem, group) in enumerate(zip(problems, completions, strict=True)):
            for start in range(0, len(group), size):
                texts = tuple(group[start : start + size])
                self._chunks.put(_Chunk(pending, row, start, problem, texts))
        return pending


class _Outcome(NamedTuple):
    """What came of one sample, as a worker sends it."""

    reward: float = 0.0
    failure: str | None = None
    message: str = ""


class _Chunk(NamedTuple):
    """Some completions of one group, from column `start`."""

    pending: PendingScores
    row: int
    start: int
    problem: Problem
    completions: tuple[str, ...]


class _ClosedError(Exception):
    """The pool was closed while a chunk was scored."""


class _Worker:
    """One process, kept alive, and the thread that feeds it."""

    def __init__(self, chunks: "queue.SimpleQueue[_Chunk | None]", setup: bytes, time_limit: float):
        self.last_failure: tuple[float, str] | None = None
        self._chunks = chunks
        self._setup = setup
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._closed = False
        self._ready = False
        self._start()
        self._thread = threading.Thread(target=self._run, name="verifier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the process; the thread notices and ends too."""
        with self._lock:
            self._closed = True
            self._kill()

    def join(self) -> None:
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            try:
                self._score(chunk)
            except _ClosedError:
                chunk.pending._fail(RuntimeError("the pool was closed"))
            except Exception as error:
                chunk.pending._fail(error)

    def _score(self, chunk: _Chunk) -> None:
        """Has all samples of a chunk scored, by as many processes as it takes."""
        done = 0
        while done < len(chunk.completions):
            self._wait_until_ready()
            if not self._hand_over(pickle.dumps((chunk.problem, chunk.completions[done:]))):
                self._restart()  # It died while it had nothing to do: no sample's fault.
                continue
            while done < len(chunk.completions):
                outcome, alive = self._receive()
                if not alive:
                    self._restart()  # First, because a pool that is closed blames no sample.
                if outcome.failure is not None:
                    self.last_failure = (time.monotonic(), outcome.message)
                chunk.pending._record(chunk.row, chunk.start + done, outcome)
                done += 1
                if not alive:
                    break

    def _hand_over(self, message: bytes) -> bool:
        """Whether the process has taken the message. A pipe also takes what nobody will read."""
        try:
            self._connection.send_bytes(message)
            if not self._connection.poll(self._time_limit + _GRACE):
                return False
            self._connection.recv()
        except (EOFError, OSError):
            return False
        return True

    def _receive(self) -> tuple[_Outcome, bool]:
        """The outcome of the sample at work, and whether the process survived it."""
        try:
            if self._connection.poll(self._time_limit + _GRACE):
                return self._connection.recv(), True
        except (EOFError, OSError):
            status = self._process.wait()
            return _Outcome(failure="raised", message=f"the process ended: status {status}"), False
        message = f"killed after the time limit of {self._time_limit} s"
        return _Outcome(failure="timed_out", message=message), False

    def _wait_until_ready(self) -> None:
        """Loading the verifier may take long; it counts against no sample."""
        if self._ready:
            return
        try:
            error = self._connection.recv()
        except (EOFError, OSError):
            self._check_open()
            error = f"its process ended: status {self._process.wait()}"
        if error is not None:
            self._restart()
            raise RuntimeError(f"a worker could not load the verifier: {error}")
        self._ready = True

    def _check_open(self) -> None:
        if self._closed:
            raise _ClosedError

    def _restart(self) -> None:
        with self._lock:
            self._check_open()
            self._kill()
            self._connection.close()
            self._start()

    def _start(self) -> None:
        self._ready = False
        self._connection, theirs = Pipe()
        with theirs:
            # Not -m: that would run the module a second time. -P: the folder at hand is on the
            # path only where it is on ours.
            call = f"from maxpo.verification import _work; _work({theirs.fileno()})"
            self._process = subprocess.Popen(
                # Answers are often evaluated as code, and warnings about them are no news.
                [sys.executable, "-P", "-W", "ignore", "-c", call],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                    "JAX_PLATFORMS": "cpu",
                },
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C is for the parent, and a kill is for all that a verifier has started.
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # It died at once; `_wait_until_ready` will say so.
            self._connection.send_bytes(self._setup)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _close(workers: list[_Worker], chunks: "queue.SimpleQueue[_Chunk | None]") -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            chunk = chunks.get_nowait()
            if chunk is not None:
                chunk.pending._fail(RuntimeError("the pool was closed"))
    for worker in workers:
        worker.close()
        chunks.put(None)
    for worker in workers:
        worker.join()


def _pickled(verifier: Verifier) -> bytes:
    try:
        content = pickle.dumps(verifier)
    except Exception as error:  # Pickling fails with many types.
        raise ValueError(
            f"the verifier must be picklable, such as a function of a module, got {verifier!r}:"
            f" {error}"
        ) from error
    if b"__main__" in content:
        raise ValueError(
            f"the verifier must be defined in a module that workers can import, got {verifier!r} of"
            " the program itself (__main__)"
        )
    return content


# What follows runs in a worker.


class _TimeUp(BaseException):
    """Not an Exception, which verifiers are prone to catch."""


def _work(descriptor: int) -> None:
    """A worker's life: load the verifier, score until the parent is gone."""
    with Connection(descriptor) as connection:
        try:
            verifier, time_limit = connection.recv()
            verifier = pickle.loads(verifier)
        except BaseException:
            connection.send(traceback.format_exc())
            return
        connection.send(None)
        # Nobody is left to kill a worker when its parent has been killed.
        watchdog = _Watchdog(time_limit + 2 * _GRACE)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                message = connection.recv_bytes()
                connection.send(None)
                problem, completions = pickle.loads(message)
                outcomes: dict[str, _Outcome] = {}
                for completion in completions:
                    if completion not in outcomes:
                        watchdog.rearm()
                        outcomes[completion] = _score(verifier, problem, completion, time_limit)
                    connection.send(outcomes[completion])
                watchdog.stop()


class _Watchdog:
    """Ends this process when a sample takes too long, whatever holds the interpreter."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._armed = -math.inf
        self._sink = open(os.devnull, "w")  # noqa: PTH123, SIM115  (for the process's life)

    def rearm(self) -> None:
        # Each call starts a thread, which costs more than most verifiers.
        if time.monotonic() - self._armed > _GRACE:
            faulthandler.dump_traceback_later(self._seconds + _GRACE, exit=True, file=self._sink)
            self._armed = time.monotonic()

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed = -math.inf


def _score(verifier: Verifier, problem: Problem, completion: str, time_limit: float) -> _Outcome:
    start = time.monotonic()
    try:
        # For each sample, because libraries that limit time themselves take the handler away.
        signal.signal(signal.SIGALRM, _raise_time_up)
        # Again and again, because a bare `except` may swallow the first.
        signal.setitimer(signal.ITIMER_REAL, time_limit, _GRACE / 4)
        try:
            reward = verifier(problem, completion)
            # A text such as "1.0" is no number, though float would take it.
            value = math.nan if isinstance(reward, (str, bytes)) else np.float32(reward)
            outcome = _Outcome(float(value))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:  # SystemExit too.
        outcome = _Outcome(failure="raised", message="".join(traceback.format_exception(error)))
    if time.monotonic() - start >= time_limit:
        return _Outcome(failure="timed_out", message=f"took longer than {time_limit} s")
    if outcome.failure is None and not math.isfinite(outcome.reward):
        return _Outcome(failure="not_finite", message=f"the reward was {reward!r}")
    return outcome


def _raise_time_up(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise _TimeUp
