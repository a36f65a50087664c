"""Makes entries of reasoning-gym in a process of its own, the same ones in every such process.

Run as a program, by `maxpo.lm.tasks.reasoning`, with a fixed PYTHONHASHSEED: some data sets go
through sets of strings. It imports nothing of maxpo, and so starts without JAX.
"""

import datetime
import os
import pickle
import random
import traceback
from typing import Any

_REAL = datetime.date, datetime.datetime


class _Stopped(type):
    """A metaclass of clocks that stand still; instances of the real ones count as theirs."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls.__mro__[1])


class _Date(datetime.date, metaclass=_Stopped):
    @classmethod
    def today(cls) -> "_Date":
        return cls(2000, 1, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return _REAL[0].fromisoformat, (self.isoformat(),)


class _DateTime(datetime.datetime, metaclass=_Stopped):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_DateTime":
        return cls(2000, 1, 1, tzinfo=tz)

    @classmethod
    def today(cls) -> "_DateTime":
        return cls(2000, 1, 1)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _REAL[1].fromisoformat, (self.isoformat(),)


def _pickled(answer: Any) -> bytes:
    """With the real clocks in their places, where pickle looks them up by name."""
    stopped = datetime.date, datetime.datetime
    datetime.date, datetime.datetime = _REAL  # type: ignore[misc]
    try:
        return pickle.dumps(answer)
    finally:
        datetime.date, datetime.datetime = stopped  # type: ignore[misc]


def main() -> None:
    """Answers requests for entries `start` to `stop` of a data set until the pipe is closed."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a data set prints is no answer.
    # time_intervals puts the day on which it runs into its entries.
    datetime.date, datetime.datetime = _Date, _DateTime  # type: ignore[misc]

    import numpy as np
    import reasoning_gym  # noqa: F401  (its data sets register themselves)
    from reasoning_gym.factory import DATASETS

    datasets: dict[bytes, Any] = {}
    while True:
        try:
            name, options, seed, start, stop = pickle.load(requests)
        except EOFError:
            return
        try:
            key = pickle.dumps((name, options, seed))
            if key not in datasets:
                make, make_config = DATASETS[name]
                datasets[key] = make(make_config(**options, seed=seed))
            found = []
            for index in range(start, stop):
                # list_functions draws from the generator that all of Python shares.
                random.seed(seed + index)
                np.random.seed((seed + index) % 2**32)  # noqa: NPY002
                try:
                    found.append(datasets[key][index])
                except (ValueError, IndexError):  # Some generators give up now and then.
                    found.append(None)
            answer = _pickled((found, ""))
        except Exception:
            answer = _pickled((None, traceback.format_exc()))
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    main()
