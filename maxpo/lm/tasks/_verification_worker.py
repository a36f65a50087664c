"""A worker of `maxpo.lm.tasks.verification`: an interpreter that forks for each sample.

A fork costs in proportion to the memory of what forks, so this module imports little; the verifier
brings what it needs.

The worker itself never runs a verifier. Each sample is scored by a fork that answers once, by one
short message with a secret that only it knows, and is then ended with all that it has started:
orphans are handed to the worker (`PR_SET_CHILD_SUBREAPER`), whatever group or session they are in.
So nothing that a sample does to its interpreter reaches another sample. Only where completions are
nothing but text to the verifier (`maxpo.lm.tasks.text.text_only`) does a fork score several.
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

from maxpo.lm.tasks.text import is_text_only
from maxpo.lm.tasks.weighted import named_parts

FAILURES = ("raised", "timed_out", "not_finite")
TEXTS = (str, bytes, bytearray, memoryview)  # No rewards, although float would read some of them.
_RAISED, _TIMED_OUT, _NOT_FINITE, _SCORED = range(4)
MEBIBYTE = 2**20
# Seconds that a sample has after the time limit to give up by itself.
GRACE = 1.0

# A pipe takes this much in one piece.
_LONGEST_ANSWER = 4096
_ANSWER = struct.Struct("<16sB")  # Secret, failure or `_SCORED`; then the values or a message.
# Where few programs write by a number of their own, and few open a file.
_DESCRIPTOR = 100
# Linux's.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _MADV_COLLAPSE = 1, 36, 25

Outcome = tuple[tuple[float, ...], str | None, str]
"""Values of the verifier's parts, one of `FAILURES` or None, and a message."""


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
            getattr(verifier, "preload", lambda: None)()
        except (EOFError, ConnectionError):
            raise
        except BaseException:
            channel.send(pickle.dumps(traceback.format_exc()))
            return
        # What the collector does not look at stays shared with the forks.
        gc.collect()
        gc.freeze()
        _use_huge_pages()
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
        self.parts = tuple(named_parts(verifier).items())
        self.values = struct.Struct(f"<{len(self.parts)}d")
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self.pid = os.getpid()
        self.devnull = os.open(os.devnull, os.O_RDWR)
        # All of ours, for forks to close.
        self.descriptors = {channel.descriptor, self.devnull}
        # Orphans come to us instead of init.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        children = Path(f"/proc/self/task/{self.pid}/children")
        self._children = os.open(children, os.O_RDONLY) if children.exists() else None
        if self._children is not None:
            self.descriptors.add(self._children)
        # What the verifier's modules have started serves all samples.
        self._helpers = self._find_children()
        # Forks inherit what follows.
        signal.signal(signal.SIGALRM, _raise_time_up)
        _limit(resource.RLIMIT_CORE, 0)
        if sys.platform == "linux":
            _limit(resource.RLIMIT_DATA, _data_size() + int(memory_limit * 2**30))

    def score(self, problem: Any, completions: tuple[str, ...]) -> Iterator[Outcome]:
        """Outcomes in order; equal completions are scored once.

        While a sample is at work the next one's fork is made ready.
        """
        unique = tuple(dict.fromkeys(completions))
        outcomes: dict[str, Outcome] = {}
        together = len(unique) if is_text_only(self.verifier) else 1
        fork: _Fork | None = None
        waiting: _Fork | None = None
        try:
            for completion in completions:
                if completion not in outcomes:
                    done = len(outcomes)
                    fork = fork or waiting or _Fork(self, problem, unique[done : done + together])
                    waiting = None
                    fork.start()
                    if together == 1 and done + 1 < len(unique):
                        waiting = _Fork(self, problem, unique[done + 1 : done + 2])
                    outcomes[completion] = fork.outcome()
                    if fork.finished or done + 1 == len(unique):
                        self._end(fork, waiting)
                        fork = None
                yield outcomes[completion]
        finally:
            for rest in (fork, waiting):
                if rest is not None:
                    self._end(rest, None)

    def _end(self, fork: "_Fork", spare: "_Fork | None") -> None:
        """Ends a fork and all that it has started; `spare` lives on."""
        fork.end()
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


class _Fork:
    """A process that scores completions one by one, each when it is told to start.

    Attributes:
      pid: Its number.
      finished: Whether it scores no more.
    """

    def __init__(self, forks: _Forks, problem: Any, completions: tuple[str, ...]):
        self.finished = False
        self._forks = forks
        self._left = len(completions)
        self._status: int | None = None  # As of `waitpid`, when it has ended.
        self._secret = os.urandom(16)
        self._answer, answer = os.pipe()
        os.set_blocking(self._answer, False)
        ready, self._start = os.pipe()
        forks.descriptors |= {self._answer, self._start}
        self.pid = _fork()
        if self.pid == 0:
            leave = os._exit  # By a name of our own: a sample may have changed the module's.
            try:
                for descriptor in forks.descriptors:
                    if descriptor != forks.devnull:
                        os.close(descriptor)
                _be_a_fork(forks, problem, completions, ready, answer, self._secret)
            finally:
                leave(1)
        os.close(answer)
        os.close(ready)

    def start(self) -> None:
        """Lets it score the next completion."""
        self._left -= 1
        self._started = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # It is gone; `outcome` will say so.
            os.write(self._start, b"1")

    def outcome(self) -> Outcome:
        """Waits for the answer; EOFError when the parent is gone."""
        content = self._receive()
        limit = self._forks.time_limit
        if content.startswith(self._secret) and len(content) >= _ANSWER.size:
            self.finished = self._left == 0
            _, kind = _ANSWER.unpack_from(content)
            rest = content[_ANSWER.size :]
            if kind == _SCORED:
                return self._forks.values.unpack(rest), None, ""
            return (), FAILURES[kind], rest.decode(errors="replace")
        self.finished = True
        if content:
            return (), "raised", "it wrote to a descriptor that is not its own"
        # One that has ended late was at the limit when its last words went wrong.
        if time.monotonic() - self._started >= limit:
            return (), "timed_out", f"took longer than {limit} s, and was killed"
        # It closes the pipe first and ends then, unless it has closed the pipe on purpose.
        _wait_for_end(self.pid)
        self.end()
        return (), "raised", f"the process ended without an answer: {_describe(self._status)}"

    def end(self) -> None:
        """Ends its process and those of its group."""
        if self._status is not None:
            return
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        _, self._status = os.waitpid(self.pid, 0)
        for descriptor in (self._answer, self._start):
            os.close(descriptor)
            self._forks.descriptors.discard(descriptor)

    def _receive(self) -> bytes:
        """What it has sent when it answers, ends, or has no more time."""
        parent = self._forks.channel.descriptor
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.register(self._answer, select.POLLIN)
        # What it has started may hold the pipe open when it has ended.
        ended = _open_process(self.pid)
        if ended is not None:
            poll.register(ended, select.POLLIN)
        try:
            left = self._started + self._forks.time_limit + GRACE - time.monotonic()
            for descriptor, _ in poll.poll(max(0, 1000 * left)):
                if descriptor == parent:  # It has nothing to say now but that it is gone.
                    raise EOFError
            return os.read(self._answer, _LONGEST_ANSWER)
        except BlockingIOError:
            return b""
        finally:
            if ended is not None:
                os.close(ended)


# What follows runs in a fork. What it needs after the verifier it has taken before.


class _TimeUp(BaseException):
    """Not an Exception, which verifiers are prone to catch."""


def _be_a_fork(
    forks: _Forks,
    problem: Any,
    completions: tuple[str, ...],
    ready: int,
    answer: int,
    secret: bytes,
) -> None:
    """Scores and answers, one completion after the other, and leaves the process."""
    getpid, read, write, leave, pack = os.getpid, os.read, os.write, os._exit, _ANSWER.pack
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
    for completion in completions:
        if read(ready, 1) != b"1":
            break
        if completion is completions[-1]:
            os.close(ready)
        kind, rest = _score(forks, problem, completion)
        if getpid() != me:  # A sample that forks comes back here twice.
            break
        write(channel, pack(secret, kind) + rest)
    leave(0)


def _score(forks: _Forks, problem: Any, completion: str) -> tuple[int, bytes]:
    """Failure and a message, or `_SCORED` and the values of all parts."""
    monotonic, setitimer, timer = time.monotonic, signal.setitimer, signal.ITIMER_REAL
    a_float, is_a, an_error, out_of_memory = float, isinstance, BaseException, MemoryError
    too_large, infinity, texts = OverflowError, math.inf, TEXTS
    describe, shorten = traceback.format_exception, _shorten
    parts, pack, limit = forks.parts, forks.values.pack, forks.time_limit
    memory_limit = forks.memory_limit
    reserve = bytes(MEBIBYTE)  # To describe an error when memory is used up; not touched before.
    kind, name, values, message = _SCORED, "", [], ""
    start = monotonic()
    try:
        # Again and again, because a bare `except` may swallow the first.
        setitimer(timer, limit, GRACE / 4)
        try:
            for part, verifier in parts:
                name = part
                result = verifier(problem, completion)
                # float would take "1.0", which is a text.
                if result is None or is_a(result, texts):
                    kind, message = _NOT_FINITE, f"the reward was {result!r}"
                    break
                try:
                    values.append(a_float(result))
                except too_large:
                    values.append(infinity)
        finally:
            setitimer(timer, 0)
    except an_error as error:  # SystemExit too.
        del reserve
        kind = _RAISED
        try:
            message = "".join(describe(error))
        except an_error:
            message = "an error that cannot be shown\n"
        if is_a(error, out_of_memory):
            message += f"(memory_limit is {memory_limit} GiB)"
    if monotonic() - start >= limit:
        kind, message = _TIMED_OUT, f"took longer than {limit} s"
    if kind == _SCORED:
        return kind, pack(*values)
    if name:
        message = f"part {name!r}: {message}"
    return kind, shorten(message.encode(errors="backslashreplace"))


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


def _open_process(pid: int) -> int | None:
    """A descriptor that can be read when the process has ended; None where there is no such."""
    with contextlib.suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _use_huge_pages() -> None:
    """Puts the memory of large modules into pages of 2 MiB, of which a fork has less to copy.

    A third less time for 90 MB of modules. The system may decline.
    """
    if sys.platform != "linux":
        return
    huge = 2 * MEBIBYTE
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split()
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            start, end = -(-start // huge) * huge, end // huge * huge
            if start < end:
                _LIBC.madvise(start, end - start, _MADV_COLLAPSE)


def _wait_for_end(pid: int) -> None:
    """Returns when the process has ended, or after `GRACE`; it stays to be waited for."""
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(AttributeError):  # macOS has no `waitid` for older Pythons.
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(GRACE / 1000)


def _limit(resource_limit: int, most: int) -> None:
    """Lowers a limit of this process and those that it starts."""
    _, hard = resource.getrlimit(resource_limit)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource_limit, (most, most))


def _prctl(option: int, value: int) -> None:
    """Does what Linux has and others lack."""
    if sys.platform == "linux":
        _LIBC.prctl(option, value, 0, 0, 0)


_LIBC = ctypes.CDLL(None)
if sys.platform == "linux":
    _LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    _LIBC.madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]


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
