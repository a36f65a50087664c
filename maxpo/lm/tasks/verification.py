"""Scores completions in other processes, while the device works.

A verifier is code that nobody has checked, run on text that a model made up, which it may even
execute. So each sample is scored by a process of its own, a fork of a worker that has loaded the
verifier and never runs it, under limits of time and memory. Whatever a sample does to its
interpreter is gone when it has been scored, and fails that sample alone.

Workers are new interpreters, not forks: JAX has threads, which a fork does not survive. They do not
import the program that started them, as those of `multiprocessing` do, so they start quickly.

What this protects from, and what it leaves to a container, is in docs/verification.md.
"""

import contextlib
import math
import os
import pickle
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maxpo.lm.tasks._verification_worker import FAILURES, GRACE, Channel
from maxpo.lm.tasks.text import Problem, Verifier
from maxpo.lm.tasks.weighted import WeightedParts

__all__ = ["FAILURES", "Outcome", "PendingScores", "Scores", "VerifierPool"]

# Completions of a problem that a worker gets at a time, at most. Fewer where there are few, so that
# each worker has some.
_CHUNK = 32
# Seconds that a worker may be late, on a busy machine, before it counts as stuck.
_PATIENCE = 10.0
# Marks workers and all that they start, so that this process can find and end them.
_MARK = "MAXPO_VERIFIER"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Scores(NamedTuple):
    """Rewards of P groups of N completions.

    Attributes:
      rewards: `[P, N]`, float32; 0 where a sample failed. Of several parts the weighted sum.
      valid: `[P, N]`, False where it failed.
      failures: How many samples failed, for each of `FAILURES`: the verifier raised or its process
        died; it took longer than the time limit; its reward was no finite float32.
      message: What went wrong with the first sample that failed, row by row, for a person to read;
        "" where none did.
      parts: `[P, N]` for each part of a `WeightedParts` by name, its value without the weight; 0
        where a sample failed. Empty for any other verifier.
      decides: Which of the parts decides what is correct; "" where there is none.
      messages: What went wrong with each sample that failed, by row and column; on a pod those of
        this process.
    """

    rewards: np.ndarray
    valid: np.ndarray
    failures: dict[str, int]
    message: str = ""
    parts: Mapping[str, np.ndarray] = {}
    decides: str = ""
    messages: Mapping[tuple[int, int], str] = {}

    def take(self, rows: np.ndarray) -> "Scores":
        """Those of some groups, in another order; `failures` and `message` stay those of all."""
        messages = {
            (new, column): self.messages[old, column]
            for new, old in enumerate(rows.tolist())
            for column in range(self.rewards.shape[1])
            if (old, column) in self.messages
        }
        return self._replace(
            rewards=self.rewards[rows],
            valid=self.valid[rows],
            messages=messages,
            parts={name: part[rows] for name, part in self.parts.items()},
        )

    @property
    def deciding(self) -> np.ndarray:
        """`[P, N]`, what decides on success: the value of a part, or the reward."""
        return self.parts[self.decides] if self.parts else self.rewards


class PendingScores:
    """Scores that are being worked out.

    Args:
      shape: P and N.
      weighted: The verifier, if it has parts.
    """

    def __init__(self, shape: tuple[int, int], weighted: WeightedParts | None = None):
        self._weighted = weighted
        self._scores = Scores(
            np.zeros(shape, np.float32), np.zeros(shape, bool), dict.fromkeys(FAILURES, 0)
        )
        if weighted is not None:
            parts = {name: np.zeros(shape, np.float32) for name in weighted.parts}
            self._scores = self._scores._replace(parts=parts, decides=weighted.decides)
        self._messages: dict[tuple[int, int], str] = {}
        self._left = math.prod(shape)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        if self._left == 0:
            self._done.set()

    def result(self) -> Scores:
        """Waits for the scores.

        Raises:
          RuntimeError: If no worker could be started, or the pool was closed before the end.
        """
        self._done.wait()
        if self._error is not None:
            raise RuntimeError(f"completions were not scored: {self._error}") from self._error
        first = min(self._messages, default=None)
        message = "" if first is None else self._messages[first]
        return self._scores._replace(message=message, messages=self._messages)

    def record(self, row: int, column: int, outcome: "Outcome") -> None:
        """Takes the outcome of one sample; the last one ends the waiting."""
        outcome = self._checked(outcome)
        with self._lock:
            if outcome.failure is None:
                self._scores.rewards[row, column] = self._reward(outcome.values)
                self._scores.valid[row, column] = True
                for part, value in self._named(outcome.values).items():
                    self._scores.parts[part][row, column] = value
            else:
                self._scores.failures[outcome.failure] += 1
                self._messages[row, column] = outcome.message
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        """The values of parts by name; nothing where the verifier has none."""
        return (
            {} if self._weighted is None else dict(zip(self._weighted.parts, values, strict=True))
        )

    def _reward(self, values: Sequence[float]) -> float:
        return values[0] if self._weighted is None else self._weighted.total(values)

    def _checked(self, outcome: "Outcome") -> "Outcome":
        """A failure if a part's value or the reward is no finite float32."""
        if outcome.failure is not None:
            return outcome
        named = {**self._named(outcome.values), "": self._reward(outcome.values)}
        with np.errstate(over="ignore"):
            wrong = [name for name, value in named.items() if not np.isfinite(np.float32(value))]
        if not wrong:
            return outcome
        where = f"part {wrong[0]!r}: " if wrong[0] else ""
        return Outcome((), "not_finite", f"{where}the reward was {named[wrong[0]]!r}")

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._done.set()


class VerifierPool:
    """A pool of processes that score completions. A context manager.

    Each sample is scored in a fork of a worker, which nothing but the answer leaves. So whatever
    the verifier keeps between calls is lost: imports belong at the top of its module, and so does
    what takes long to build. Equal completions of one problem may be scored once. What a sample
    prints is thrown away.

    Args:
      verifier: A picklable function of a problem and a completion. Its module starts no threads.
        The parts of a `WeightedParts` share the process and the limits of a sample.
      workers: Number of samples that are scored at a time. They see no accelerator, only the CPU.
      time_limit: Seconds for each sample. A Python signal ends it then; code that ignores signals
        is killed a second later.
      memory_limit: GiB that a sample may allocate, on Linux: private memory (`RLIMIT_DATA`) of
        each of its processes, beyond what the worker has. Their sum has no limit.

    Raises:
      ValueError: If an argument is out of range, or the verifier is not picklable.

    Example::

        with VerifierPool(task.verifier, workers=2, time_limit=1.0) as pool:
            pending = pool.submit(problems, completions)
            ...                              # the device works on something else
            scores = pending.result()
    """

    def __init__(
        self, verifier: Verifier, *, workers: int, time_limit: float, memory_limit: float = 4.0
    ):
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        for name, limit in (("time_limit", time_limit), ("memory_limit", memory_limit)):
            if not 0 < limit < math.inf:
                raise ValueError(f"{name}: expected a positive and finite number, got {limit}")
        self._weighted = verifier if isinstance(verifier, WeightedParts) else None
        setup = pickle.dumps((_pickled(verifier), time_limit, memory_limit))
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

    def submit(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
    ) -> PendingScores:
        """Starts to score P groups of N completions, and returns at once.

        Args:
          problems: P problems.
          completions: `[P][N]` texts, a group for each problem.

        Raises:
          RuntimeError: If the pool is closed.
          ValueError: If the lengths do not fit.
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
        pending = PendingScores(shape, self._weighted)
        size = min(_CHUNK, 1 + math.prod(shape) // (4 * len(self._workers)))
        for row, (problem, group) in enumerate(zip(problems, completions, strict=True)):
            for start in range(0, len(group), size):
                texts = tuple(group[start : start + size])
                self._chunks.put(_Chunk(pending, row, start, problem, texts))
        return pending


class Outcome(NamedTuple):
    """What came of one sample.

    Attributes:
      values: Of the parts of a `WeightedParts`, in their order; of any other verifier the reward
        alone. None where it failed.
      failure: One of `FAILURES`, or None.
      message: What went wrong, for a person to read.
    """

    values: tuple[float, ...] = ()
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
        """Tells the process and the thread to end."""
        with self._lock:
            self._closed = True
            self._hang_up()

    def join(self) -> None:
        """Returns when both have ended."""
        self._end()
        self._thread.join()
        self._socket.close()

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
                chunk.pending.record(chunk.row, chunk.start + done, outcome)
                done += 1
                if not alive:
                    break

    def _hand_over(self, message: bytes) -> bool:
        """Whether the process has taken the message. A socket also takes what nobody will read."""
        try:
            self._channel.send(message)
            if not self._channel.poll(_PATIENCE):
                return False
            self._channel.receive()
        except (EOFError, OSError):
            return False
        return True

    def _receive(self) -> tuple[Outcome, bool]:
        """The outcome of the sample at work, and whether the worker survived it."""
        try:
            if self._channel.poll(self._time_limit + GRACE + _PATIENCE):
                return Outcome(*pickle.loads(self._channel.receive())), True
        except (EOFError, OSError):
            status = self._process.wait()
            return Outcome(failure="raised", message=f"its worker ended: status {status}"), False
        message = f"killed with its worker, long after the time limit of {self._time_limit} s"
        return Outcome(failure="timed_out", message=message), False

    def _wait_until_ready(self) -> None:
        """Loading the verifier may take long; it counts against no sample."""
        if self._ready:
            return
        try:
            error = pickle.loads(self._channel.receive())
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
            self._end()
            self._socket.close()
            self._start()

    def _start(self) -> None:
        self._ready = False
        self._socket, theirs = socket.socketpair()
        self._channel = Channel(self._socket.fileno())
        self._mark = f"{_MARK}={secrets.token_hex(16)}"
        with theirs:
            # Not -m: that would run the module a second time. -P: the folder at hand is on the
            # path only where it is on ours.
            call = f"from maxpo.lm.tasks._verification_worker import work; work({theirs.fileno()})"
            self._process = subprocess.Popen(
                # Answers are often evaluated as code, and warnings about them are no news.
                [sys.executable, "-P", "-W", "ignore", "-c", call],
                env={
                    # Scores should not depend on which process gives them.
                    "PYTHONHASHSEED": "0",
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                    "JAX_PLATFORMS": "cpu",
                    # A process that forks has no threads.
                    **dict.fromkeys(_THREADS, "1"),
                    **dict([self._mark.split("=")]),
                },
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C is for the parent, and a kill is for all that a verifier has started.
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # It died at once; `_wait_until_ready` will say so.
            self._channel.send(self._setup)

    def _hang_up(self) -> None:
        """A worker that hears nothing more ends its sample, then itself."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        """Ends the process and all that it has started."""
        self._hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(GRACE) == 0:
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Forks die with their worker; what they have started is nobody's child now.
        while _kill_marked(self._mark.encode()):
            pass


def _kill_marked(mark: bytes) -> bool:
    """Kills processes that were started with that variable; whether there were any."""
    found = False
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                found = True
    return found


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
            "verifier: expected something picklable, such as a function of a module, got "
            f"{verifier!r}: {error}"
        ) from error
    if b"__main__" in content:
        raise ValueError(
            f"verifier: expected one of a module that workers can import, got {verifier!r} of"
            " the program itself (__main__)"
        )
    return content
