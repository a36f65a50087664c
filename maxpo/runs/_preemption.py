"""SIGTERM, by which a machine is taken back: the program saves and ends, and may come again."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

import jax
import numpy as np

from maxpo import parallel

EXIT_CODE = 128 + signal.SIGTERM

GO_ON = "start the same command again to go on"

T = TypeVar("T")


class Preempted(SystemExit):
    """SIGTERM has ended the program with exit code 143; started again it goes on."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@dataclasses.dataclass
class _Watch:
    process: int = 0  # the one in which SIGTERM is handled, 0 for none
    asked: bool = False  # whether it came while there was something to save
    loops: int = 0  # how many training loops are under way


_watch = _Watch()


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Makes SIGTERM save before it ends the program, within its block.

    In a loop over `steps` the step that is running goes on to its end, its state is saved, and
    `Preempted`, a SystemExit with code 143, is raised. Anywhere else, as in an evaluation, it is
    raised at once: what was saved last stays, and what was computed since is lost. On a pod it is
    raised in all processes after the same step, and outside of a loop not before the next save or
    the opening of the next run. A second SIGTERM has its default action, which ends the process at
    once; the checkpoints before it stay whole.

    The interpreter notices a signal when the call into a compiled program that is under way
    returns. In another thread than the main one, and within another such block, this does nothing.
    """
    if _watch.process == os.getpid() or threading.current_thread() != threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _on_sigterm)
    _watch.process, _watch.asked, _watch.loops = os.getpid(), False, 0
    try:
        yield
        if _watch.asked:  # On a pod, in an evaluation that nothing came after.
            raise Preempted
    finally:
        _watch.process, _watch.asked = 0, False
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)  # None if it was no Python's.


def leave(by: signal.Signals) -> NoReturn:
    """Ends the process as one that a signal has stopped, without what Python does at its end.

    By SIGTERM it exits with code 143. By SIGINT it dies, which is how a shell knows that a loop of
    commands should end, too.

    The signal may have come while programs were compiled or ran on the device. Their threads go on
    while the interpreter is taken down, and have been seen to crash in it, which ends the process
    by another signal: a scheduler would not know that it was stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # No one reads, or it is closed.
            stream.flush()
    if by == signal.SIGINT:
        signal.signal(by, signal.SIG_DFL)
        signal.raise_signal(by)
    os._exit(128 + by)


def is_asked_for() -> bool:
    """Whether SIGTERM asks for a save; on a pod, where all must call this, that of any process."""
    return bool(parallel.sum_over_processes(np.int32(_watch.asked)))


def saved_before_the_end(items: Iterable[T]) -> Iterator[T]:
    """Yields the items of a training loop, which SIGTERM ends by a save in its body."""
    _watch.loops += 1
    try:
        for item in items:
            asked = _watch.asked
            yield item
            if asked:  # For a whole turn, and it has not saved.
                _stop_here()
    finally:
        _watch.loops -= 1
    if _watch.asked:  # Since the last save.
        _stop_here()


def _stop_here() -> None:
    # The processes of a pod agree where they save: not all need be in this loop.
    if jax.process_count() == 1:
        _tell(f"stopped; {GO_ON} from what was saved last")
        raise Preempted


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # for the second
    if os.getpid() != _watch.process:  # A fork has nothing to save.
        os.kill(os.getpid(), signal.SIGTERM)
    elif _watch.loops or jax.distributed.is_initialized():
        _watch.asked = True
        _tell("saving after this step; once more to end at once")
    else:
        _tell(f"stopped; {GO_ON} from what was saved last")
        raise Preempted


def _tell(message: str) -> None:
    """Prints in a signal handler, which may have come in the middle of a `print`."""
    with contextlib.suppress(OSError):
        os.write(2, f"SIGTERM: {message}\n".encode())
