"""A worker of `maxpo.verification`: an interpreter that forks for each sample.

A fork costs in proportion to the memory of what forks, so that this module imports nothing but
small parts of the standard library; the verifier brings what it needs.

The worker itself never runs a verifier. Each sample is scored by a fork that answers once, by one
short message with a secret that only it knows, and is then ended with all that it has started:
orphans are handed to the worker (`PR_SET_CHILD_SUBREAPER`), whatever group or session they are in.
So nothing that a sample does to its interpreter reaches another sample.
"""

import contextlib
import ctypes
import fcntl
import gc
import math
import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

FAILURES = ("raised", "timed_out", "not_finite")
_RAISED, _TIMED_OUT, _NOT_FINITE, _SCORED = range(4)
MEBIBYTE = 2**20
# Seconds that a sample has after the time limit to give up by itself.
GRACE = 1.0

# A pipe takes this much in one piece.
_LONGEST_ANSWER = 4096
_ANSWER = struct.Struct("<16sBd")  # Secret, failure or `_SCORED`, reward; then a message.
# Where few programs write by a number of their own, and few open a file.
_DESCRIPTOR = 100
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

Outcome = tuple[float, str | None, str]
"""Reward, one of `FAILURES` or None, and a message."""


class Channel:
    """Sends and receives bytes, message by message, over one end of a socket pair."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def send(self, message: bytes) -> None:
        """Returns when all of it is on its way."""
        rest = memoryview(struct.pack("<Q", len(message)) + message)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def receive(self) -> bytes:
        """Waits for a message; EOFError when the other side is gone."""
        (length,) = struct.unpack("<Q", self._read(8))
        return self._read(length)

    def poll(self, seconds: float) -> bool:
        """Whether `receive` has something to begin with, or its end, within that time."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            parts.append(os.read(self.descriptor, min(length, MEBIBYTE)))
            length -= len(parts[-1])
            if not parts[-1]:
                raise EOFError
        return b"".join(parts)


def work(descriptor: int) -> None:
    """A worker's life: load the verifier, have samples scored until the parent is gone."""
    channel = Channel(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            verifier, time_limit, memory_limit = pickle.loads(channel.receive())
            verifier = pickle.loads(verifier)
        except (EOFError, ConnectionError):
            raise
        except BaseException:
            channel.send(pickle.dumps(traceback.format_exc()))
            return
        # What the collector does not look at stays shared with the forks.
        gc.collect()
        gc.freeze()
        forks = _Forks(channel, verifier, time_limit, memory_limit)
        channel.send(pickle.dumps(None))
        while True:
            chunk = channel.receive()
            channel.send(b"")
            problem, completions = pickle.loads(chunk)
            for outcome in forks.score(problem, completions):
                channel.send(pickle.dumps(outcome))


class _Forks:
    """Has samples scored, each by a fork."""

    def __init__(
        self,
        channel: Channel,
        verifier: Callable[[Any, str], Any],
        time_limit: float,
        memory_limit: float,
    ):
        self.channel = channel
        self.verifier = verifier
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self.pid = os.getpid()
        self.devnull = os.open(os.devnull, os.O_RDWR)
        # All of ours, for forks to close.
        self.descriptors = {channel.descriptor, self.devnull}
        self.most_data = _data_size() + int(memory_limit * 2**30)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        # Orphans come to us instead of init.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        children = Path(f"/proc/self/task/{self.pid}/children")
        self._children = os.open(children, os.O_RDONLY) if children.exists() else None
        if self._children is not None:
            self.descriptors.add(self._children)
        # What the verifier's modules have started serves all samples.
        self._helpers = self._find_children()

    def score(self, problem: Any, completions: tuple[str, ...]) -> Iterator[Outcome]:
        """Outcomes in order; equal completions are scored once.

        While a sample is at work the next one's fork is made ready.
        """
        unique = iter(dict.fromkeys(completions))
        outcomes: dict[str, Outcome] = {}
        waiting = _Sample(self, problem, next(unique))
        try:
            for completion in completions:
                if completion not in outcomes:
                    sample = waiting
                    sample.start()
                    try:
                        following = next(unique, None)
                        if following is not None:
                            waiting = _Sample(self, problem, following)
                        outcomes[completion] = sample.outcome()
                    finally:
                        self.end(sample, None if waiting is sample else waiting)
                yield outcomes[completion]
        finally:
            if waiting.status is None:
                self.end(waiting, None)

    def end(self, sample: "_Sample", spare: "_Sample | None") -> None:
        """Ends a sample and all that it has started; `spare` lives on."""
        sample.end()
        spared = self._helpers if spare is None else {*self._helpers, spare.pid}
        while orphans := self._find_children() - spared:
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    # Its whole group at once, which may be busy with forking.
                    os.killpg(os.getpgid(pid), signal.SIGKILL)
            for pid in orphans:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _find_children(self) -> set[int]:
        if self._children is not None:
            found = b""
            while part := os.pread(self._children, 4096, len(found)):
                found += part
            return {int(pid) for pid in found.split()}
        return {pid for pid, parent in _parents() if parent == self.pid}


class _Sample:
    """A fork that waits to be started, scores one completion, answers, and is ended."""

    def __init__(self, forks: _Forks, problem: Any, completion: str):
        self.status: int | None = None  # As of `waitpid`, when it has ended.
        self._forks = forks
        self._secret = os.urandom(16)
        self._answer, answer = os.pipe()
        os.set_blocking(self._answer, False)
        ready, self._start = os.pipe()
        ours = {self._answer, self._start}
        forks.descriptors |= ours
        self.pid = _fork()
        if self.pid == 0:
            leave = os._exit  # By a name of our own: a sample may have changed the module's.
            try:
                for descriptor in forks.descriptors - {forks.devnull}:
                    os.close(descriptor)
                _be_a_sample(forks, problem, completion, ready, answer, self._secret)
            finally:
                leave(1)
        os.close(answer)
        os.close(ready)

    def start(self) -> None:
        """Lets it score."""
        self._started = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # It is gone; `outcome` will say so.
            os.write(self._start, b"1")

    def outcome(self) -> Outcome:
        """Waits for the answer; EOFError when the parent is gone."""
        limit = self._forks.time_limit
        if not self._wait(self._started + limit + GRACE):
            return 0.0, "timed_out", f"killed after the time limit of {limit} s"
        content = b""
        with contextlib.suppress(BlockingIOError):  # It has ended, but what it started has not.
            content = os.read(self._answer, _LONGEST_ANSWER)
        if not content:
            # One that has ended late was at the limit when its last words went wrong.
            if time.monotonic() - self._started >= limit:
                return 0.0, "timed_out", f"took longer than {limit} s"
            self.end()
            return 0.0, "raised", f"the process ended: {_describe(self.status)}"
        if not content.startswith(self._secret) or len(content) < _ANSWER.size:
            return 0.0, "raised", "it wrote to a descriptor that is not its own"
        _, kind, reward = _ANSWER.unpack_from(content)
        message = content[_ANSWER.size :].decode(errors="replace")
        return reward, None if kind == _SCORED else FAILURES[kind], message

    def end(self) -> None:
        """Ends its process and those of its group."""
        if self.status is not None:
            return
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        _, self.status = os.waitpid(self.pid, 0)
        for descriptor in (self._answer, self._start):
            os.close(descriptor)
            self._forks.descriptors.discard(descriptor)

    def _wait(self, deadline: float) -> bool:
        """Whether it answers or ends before the deadline."""
        parent = self._forks.channel.descriptor
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.register(self._answer, select.POLLIN)
        with contextlib.ExitStack() as stack:
            if sys.platform == "linux":
                ended = os.pidfd_open(self.pid)
                stack.callback(os.close, ended)
                poll.register(ended, select.POLLIN)
            while (left := deadline - time.monotonic()) > 0:
                ready = [descriptor for descriptor, _ in poll.poll(1000 * left)]
                if parent in ready:  # It has nothing to say now but that it is gone.
                    raise EOFError
                if ready:
                    return True
        return False


# What follows runs in a fork. What it needs after the verifier it has taken before.


class _TimeUp(BaseException):
    """Not an Exception, which verifiers are prone to catch."""


def _be_a_sample(
    forks: _Forks, problem: Any, completion: str, ready: int, answer: int, secret: bytes
) -> None:
    """Waits for the start, scores, answers, and leaves the process."""
    getpid, write, leave, pack = os.getpid, os.write, os._exit, _ANSWER.pack
    me = getpid()
    os.setsid()  # A signal to its own group stays with it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != forks.pid:
        leave(1)
    os.dup2(forks.devnull, 1)
    os.dup2(forks.devnull, 2)
    os.close(forks.devnull)
    channel = fcntl.fcntl(answer, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR)
    os.close(answer)
    if sys.platform == "linux":
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        most = forks.most_data if most == resource.RLIM_INFINITY else min(most, forks.most_data)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if os.read(ready, 1) != b"1":
        leave(1)
    os.close(ready)
    kind, reward, message = _score(forks, problem, completion)
    # A sample that forks comes back here twice.
    if getpid() == me:
        write(channel, pack(secret, kind, reward) + message)
    leave(0)


def _score(forks: _Forks, problem: Any, completion: str) -> tuple[int, float, bytes]:
    """Failure or `_SCORED`, reward, and a message."""
    monotonic, setitimer, timer = time.monotonic, signal.setitimer, signal.ITIMER_REAL
    a_float, is_a, an_error, out_of_memory = float, isinstance, BaseException, MemoryError
    too_large, infinity, texts = OverflowError, math.inf, (str, bytes, bytearray, memoryview)
    describe, shorten = traceback.format_exception, _shorten
    verifier, limit = forks.verifier, forks.time_limit
    memory_hint = f"(memory_limit is {forks.memory_limit:g} GiB)"
    reserve = bytearray(MEBIBYTE)  # To describe an error when memory is used up.
    kind, reward, message = _SCORED, 0.0, ""
    start = monotonic()
    try:
        signal.signal(signal.SIGALRM, _raise_time_up)
        # Again and again, because a bare `except` may swallow the first.
        setitimer(timer, limit, GRACE / 4)
        try:
            result = verifier(problem, completion)
            if result is None or is_a(result, texts):  # float would take "1.0", which is a text.
                kind, message = _NOT_FINITE, f"the reward was {result!r}"
            else:
                try:
                    reward = a_float(result)
                except too_large:
                    reward = infinity
        finally:
            setitimer(timer, 0)
    except an_error as error:  # SystemExit too.
        del reserve
        kind = _RAISED
        try:
            message = "".join(describe(error))
        except an_error:
            message = "an error that cannot be shown"
        if is_a(error, out_of_memory):
            message += memory_hint
    if monotonic() - start >= limit:
        kind, message = _TIMED_OUT, f"took longer than {limit} s"
    return kind, reward, shorten(message.encode(errors="backslashreplace"))


def _raise_time_up(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise _TimeUp


def _shorten(message: bytes) -> bytes:
    """Beginning and end of what does not fit into an answer."""
    room = _LONGEST_ANSWER - _ANSWER.size
    if len(message) <= room:
        return message
    gap = b"\n[...]\n"
    half = (room - len(gap)) // 2
    return message[:half] + gap + message[-half:]


# The system.


def _fork() -> int:
    for pause in (0.01, 0.1, 1.0):
        try:
            return os.fork()
        except OSError:  # Too many processes; another sample's may be about to end.
            time.sleep(pause)
    return os.fork()


def _prctl(option: int, value: int) -> None:
    """Does what Linux has and others lack."""
    if sys.platform == "linux":
        _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


_LIBC = ctypes.CDLL(None)


def _data_size() -> int:
    """Bytes that count for `RLIMIT_DATA` now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    return 1024 * int(line.split()[1])


def _parents() -> Iterator[tuple[int, int]]:
    """All processes with their parents; none where the system has no /proc."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])


def _describe(status: int | None) -> str:
    assert status is not None
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
