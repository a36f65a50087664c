"""Which problems a step learns from."""

import numpy as np


def batch_of_step(seed: int, step: int, size: int, count: int) -> np.ndarray:
    """Numbers of the problems of a step, a function of its arguments alone.

    Every epoch is a permutation of all `count` problems of its own, and the steps take `size` each
    from one epoch after the other.

    Args:
      seed: Of the permutations.
      step: From 1.
      size: Problems in a step.
      count: Problems there are.

    >>> order = np.concatenate([batch_of_step(0, step, 4, 6) for step in (1, 2, 3)])
    >>> sorted(order[:6].tolist()) == sorted(order[6:].tolist()) == list(range(6))
    True
    """
    places = np.arange((step - 1) * size, step * size)
    epochs = {
        int(epoch): np.random.default_rng((seed, int(epoch))).permutation(count)
        for epoch in np.unique(places // count)
    }
    return np.array([epochs[place // count][place % count] for place in places.tolist()])
