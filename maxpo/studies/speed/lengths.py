"""Lengths of completions as they are in practice: many short ones and a long tail."""

import numpy as np

__all__ = ["log_normal_lengths"]


def log_normal_lengths(
    rng: np.random.Generator,
    prompts: int,
    group_size: int,
    limit: int,
    *,
    median: float = 0.2,
    sigma: float = 0.6,
) -> np.ndarray:
    """Draws lengths `min(limit, round(median * limit * exp(sigma * z)))` for normal z.

    Args:
      rng: Decides the draws.
      prompts: P.
      group_size: N.
      limit: T, where longer completions are truncated.
      median: Of the lengths before they are truncated, as a share of `limit`.
      sigma: Standard deviation of their logarithms; 0 makes all lengths equal.

    Returns:
      `[P, N]` int32, from 1 to `limit`.
    """
    drawn = median * limit * np.exp(sigma * rng.standard_normal((prompts, group_size)))
    return np.clip(np.rint(drawn), 1, limit).astype(np.int32)
