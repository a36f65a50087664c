"""Moments of a small softmax policy's gradient from all groups. Nothing of it is in the library."""

import itertools
from collections.abc import Callable

import jax
import numpy as np


def enumerated(
    advantages: Callable, logits: np.ndarray, rewards: np.ndarray, n: int
) -> tuple[float, float]:
    """Trace of the covariance and squared norm of the mean, in float64."""
    p = np.exp(logits) / np.exp(logits).sum()
    actions = np.array(list(itertools.product(range(len(p)), repeat=n)))
    odds = np.prod(p[actions], axis=1)
    with jax.enable_x64(True):
        weights = np.asarray(advantages(rewards[actions]))
    gradients = np.einsum("bn,bna->ba", weights, np.eye(len(p))[actions] - p) / n
    mean = odds @ gradients
    return odds @ np.sum((gradients - mean) ** 2, axis=1), np.sum(mean**2)
