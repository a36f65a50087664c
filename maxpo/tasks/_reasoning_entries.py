"""Makes entries of reasoning-gym in a process of its own, the same ones in every such process.

Run as a program, by `maxpo.tasks.reasoning`, with a fixed PYTHONHASHSEED: some data sets go through
sets of strings. It imports nothing of maxpo, and so starts without JAX.
"""

import datetime
import os
import pickle
import random
import sys
import traceback
from typing import Any


class _FixedDate(datetime.date):
    @classmethod
    def today(cls) -> "_FixedDate":
        return cls(2000, 1, 1)


def main() -> None:
    """Answers requests for entries `start` to `stop` of a data set until the pipe is closed."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a data set prints is no answer.

    import numpy as np
    import reasoning_gym  # noqa: F401  (its data sets register themselves)
    from reasoning_gym.arithmetic import time_intervals
    from reasoning_gym.factory import DATASETS

    time_intervals.date = _FixedDate  # It puts the day on which it runs into its entries.
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
            answer = pickle.dumps((found, ""))
        except Exception:
            answer = pickle.dumps((None, traceback.format_exc()))
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
