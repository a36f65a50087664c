"""A training loop that stops at the start of each of its steps, so that several take turns."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["HeldLoop", "Seconds"]


@dataclasses.dataclass(frozen=True)
class Seconds:
    """A time on two clocks.

    Attributes:
      wall: Of the clock on the wall.
      processor: Of all threads of this process together, which other processes change little.
    """

    wall: float = 0.0
    processor: float = 0.0

    @classmethod
    def now(cls) -> "Seconds":
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.processor - other.processor)


class _ClosedError(Exception):
    """Ends a loop that is not to go on."""


class HeldLoop:
    """Runs a training loop in a thread of its own, one step at a time.

    A trainer owns its loop and only calls back. Here such a call waits until the next step is asked
    for, and so the whole step is timed as the trainer does it, without setting it up each time.

    >>> done = []
    >>> def train(loop):
    ...     for step in range(9):
    ...         loop.hold()
    ...         done.append(step)
    >>> with HeldLoop(train) as loop:
    ...     taken = [loop.step(), loop.step()]
    >>> done
    [0, 1]
    """

    def __init__(self, train: Callable[["HeldLoop"], None]):
        """Starts the loop; returns when it holds before its first step.

        Args:
          train: The loop, which calls `hold` at the start of each step.

        Raises:
          RuntimeError: As `step`.
        """
        self.sampling = Seconds()
        """What the last step spent in functions of `sampled`."""
        self._asked, self._holds = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._closed = self._over = False
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self._thread.start()
        self._wait()

    def __enter__(self) -> "HeldLoop":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the loop where it holds."""
        self._closed = True
        self._asked.release()
        self._thread.join()

    def hold(self) -> None:
        """Called by the loop at the start of a step: waits until that is asked for."""
        self._holds.release()
        self._asked.acquire()
        if self._closed:
            raise _ClosedError
        self.sampling = Seconds()

    def sampled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted in `sampling`."""

        def timed(*args: Any, **options: Any) -> Any:
            began = Seconds.now()
            result = function(*args, **options)
            self.sampling += Seconds.now() - began
            return result

        return timed

    def step(self) -> Seconds:
        """Does one step; returns what it took when the loop holds before the next one.

        Raises:
          RuntimeError: If the loop ended or failed instead.
        """
        began = Seconds.now()
        self._asked.release()
        self._wait()
        return Seconds.now() - began

    def _wait(self) -> None:
        self._holds.acquire()
        if self._over:
            self._holds.release()  # Also for whoever asks again.
            raise RuntimeError("expected a loop that goes on, but it ended") from self._error

    def _run(self, train: Callable[["HeldLoop"], None]) -> None:
        try:
            train(self)
        except _ClosedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._over = True
            self._holds.release()
