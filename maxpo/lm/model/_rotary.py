"""Rotary positions: frequencies, angles, and the turning of queries and keys."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxpo.lm.model._products import with_rank_of
from maxpo.lm.model.config import Llama3Rope


class Rotation(NamedTuple):
    """Cosines and sines `[..., head_dim / 2]` of the rotary angles of positions `[...]`."""

    cosines: jax.Array
    sines: jax.Array


def frequencies(head_dim: int, theta: float, scaling: Llama3Rope | None) -> np.ndarray:
    """Angles from one position to the next, `theta^(-2 i / head_dim)`, i < head_dim / 2, float32.

    An angle is the position times the frequency, and so is its error: at position 10^5 the last
    digit of a frequency turns a query visibly. Checkpoints are made and served with frequencies
    that are rounded to float32 after each operation, exponents first, so these are as well.

    Args:
      head_dim: Width of a head.
      theta: Base.
      scaling: See `Llama3Rope`; None: no scaling.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # NumPy's power of float32 is off by more than its last digit, that of float64 is not.
    powers = np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)
    unscaled = np.float32(1) / powers
    return unscaled if scaling is None else _slowed(unscaled, scaling)


def _slowed(unscaled: np.ndarray, scaling: Llama3Rope) -> np.ndarray:
    """Divides by `factor` what turns too slowly to come around within the original context."""
    wavelengths = np.float32(1) / unscaled * np.float32(2 * math.pi)
    turns = np.float32(1) / wavelengths * np.float32(scaling.original_max_position_embeddings)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
    return (1 - kept) * unscaled / np.float32(scaling.factor) + kept * unscaled


def rotation(positions: jax.Array, frequencies: np.ndarray) -> Rotation:
    """By the angles `position * frequency`, of `frequencies` `[head_dim / 2]`."""
    wide = positions[..., None].astype(jnp.float32)
    angles = wide * with_rank_of(jnp.asarray(frequencies), wide)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Rotates the pairs `(x_i, x_{i + head_dim / 2})` of each head, in float32; keeps x's dtype.

    See "RoFormer: Enhanced Transformer with Rotary Position Embedding"
    (https://arxiv.org/abs/2104.09864); halves instead of neighbors, as in the open models.

    Args:
      x: `[..., heads, head_dim]`.
      by: `[..., head_dim / 2]`, the same for all heads.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosines, sines = by.cosines[..., None, :], by.sines[..., None, :]
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
