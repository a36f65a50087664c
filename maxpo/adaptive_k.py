"""A k for each problem: the more attempts, the more rarely it is solved.

    estimate = init_success_estimate(num_problems)
    ...
    k = adaptive_k(estimate.rate(problem_ids), target=0.5, k_max=8)
    advantages = estimators.maxpo(rewards, k)
    estimate = estimate.update(problem_ids, rewards > 0)

The order of these lines matters. Given what happened in earlier steps, a k that is chosen from them
is a number, and the advantages are unbiased for the gradient of each problem's own max@k. A k that
is chosen from the rewards that it is used on depends on the samples, and the gradient is biased.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maxpo._numbers import as_floats

__all__ = ["AdaptiveK", "SuccessEstimate", "adaptive_k", "init_success_estimate"]


class AdaptiveK(NamedTuple):
    """The settings of `adaptive_k`.

    Attributes:
      target: The pass@k to reach, between 0 and 1.
      k_max: The largest k.
    """

    target: float = 0.5
    k_max: float = 8.0


def adaptive_k(success_rate: ArrayLike, *, target: float, k_max: float) -> jax.Array:
    """The number of attempts with which a problem is solved with probability `target`.

        k = log(1 - target) / log(1 - p), at least 1 and at most k_max

    Of p at least `target` k is 1, of p = 0 it is k_max. It is a real number, as estimators take it.
    The rates have to come from other samples than those that k is used on, such as earlier ones of
    the same problem (`SuccessEstimate`): with their own, gradients are biased.

    Args:
      success_rate: p, of any shape, from 0 to 1.
      target: The pass@k to reach, between 0 and 1.
      k_max: The largest k; estimators that leave one sample out allow N - 1.

    Returns:
      The k of each rate; NaN of a NaN.

    Raises:
      ValueError: If target is not between 0 and 1, or k_max is below 1 or not finite.

    >>> adaptive_k([0., 0.1, 0.5, 1.], target=0.75, k_max=8)
    Array([8., 8., 2., 1.], dtype=float32)
    """
    if not 0 < target < 1:
        raise ValueError(f"target: expected a number between 0 and 1, got {target}")
    if not 1 <= k_max < math.inf:
        raise ValueError(f"k_max: expected a finite number of at least 1, got {k_max}")
    p = as_floats(success_rate, "success_rate: expected rates")
    # Of the inverse, so that p = 0 divides by no 0.
    inverse = jnp.maximum(jnp.log1p(-p) / math.log1p(-target), 1 / k_max)
    return jnp.clip(1 / inverse, 1, k_max)


class SuccessEstimate(NamedTuple):
    """How often each of M problems was solved, in counts that forget; a pytree.

    Attributes:
      successes: `[M]`.
      attempts: `[M]`, above 0.
    """

    successes: jax.Array
    attempts: jax.Array

    def rate(self, problem_ids: ArrayLike) -> jax.Array:
        """The estimated success rates of the problems of these numbers, in their shape."""
        ids = jnp.asarray(problem_ids)
        return self.successes[ids] / self.attempts[ids]

    def update(
        self,
        problem_ids: ArrayLike,
        successes: ArrayLike,
        *,
        where: ArrayLike | None = None,
        forgetting: float = 0.9,
    ) -> "SuccessEstimate":
        """The estimate after further groups.

        The counts of every problem that has samples among them shrink to `forgetting` of what they
        were, and the samples are added. To be called after `rate` of the same groups.

        Args:
          problem_ids: `[P]`, the problem of each group; one may have several.
          successes: `[P, N]` boolean.
          where: `[P, N]` boolean, the samples that count. None: all of them.
          forgetting: Between 0 and 1. A problem's samples weigh as those of
            1 / (1 - forgetting) visits in the long run; at 1 nothing is forgotten.
        """
        solved = jnp.asarray(successes)
        counted = jnp.ones_like(solved) if where is None else jnp.asarray(where)
        ids, dtype = jnp.asarray(problem_ids), self.attempts.dtype
        share = jnp.where(jnp.any(counted, axis=-1), jnp.asarray(forgetting, dtype), 1)
        kept = jnp.ones_like(self.attempts).at[ids].min(share)  # Once, whatever its groups.

        def add(counts: jax.Array, samples: jax.Array) -> jax.Array:
            return (kept * counts).at[ids].add(jnp.sum(samples, axis=-1, dtype=dtype))

        return SuccessEstimate(add(self.successes, solved & counted), add(self.attempts, counted))


def init_success_estimate(
    num_problems: int, *, prior_rate: float = 0.5, prior_attempts: float = 1.0
) -> SuccessEstimate:
    """The estimate before anything was sampled.

    Args:
      num_problems: M.
      prior_rate: The rate of a problem that was never seen.
      prior_attempts: How many samples that counts for; they are forgotten as others are.
    """
    attempts = jnp.full(num_problems, prior_attempts, jnp.float32)
    return SuccessEstimate(prior_rate * attempts, attempts)
