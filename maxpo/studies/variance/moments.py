"""Mean and covariance of policy gradients on softmax bandits, by Monte Carlo.

The parameters of a softmax bandit are the logits of its A arms, so one group of N actions gives

    g = (1/N) sum_i A_i (e_{a_i} - p) ,

e_a the unit vector of arm a and p the policy. Its entries sum to zero, so with b the likeliest arm,
S = (1/N) sum_i A_i and the sums over samples of other arms only,

    g_b   = -(U - S (1 - p_b)) ,   U = (1/N) sum_i A_i
    |g|^2 = (1/N^2) sum_{i,j} A_i A_j [a_i = a_j]  -  2 S (1/N) sum_i A_i p_{a_i}
            + S^2 sum_{a != b} p_a^2  +  g_b^2 .

That needs no array of A numbers for each group, and no term is large where a policy close to a
deterministic one makes g small. Everything is estimated separately on each of C bandits, so that
the spread over them gives every figure its standard error, ratios of correlated figures included.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxpo._estimates import Estimate, mean, ratio
from maxpo.methods import bind_estimator

__all__ = [
    "Advantages",
    "Bandits",
    "Estimate",
    "Moments",
    "estimator_moments",
    "gradient_moments",
    "log2_ratio",
    "mean",
    "ratio",
]

Advantages = Callable[[jax.Array], jax.Array]
"""Rewards `[M, N]` of M groups to advantages `[..., M, N]`: several estimators share a call."""


class Bandits(NamedTuple):
    """A batch of bandits with the policies on them.

    Attributes:
      logits: `[C, A]`, the parameters of the softmax policies.
      rewards: `[C, A]`, what each arm pays.
    """

    logits: jax.Array
    rewards: jax.Array


class Moments(NamedTuple):
    """Estimates by bandit, independent of each other.

    Attributes:
      trace: `[C, ...]`, trace of the covariance of g, unbiased.
      signal: `[C, ...]`, |E g|^2, unbiased, hence at times negative where it is small.
    """

    trace: jax.Array
    signal: jax.Array


def gradient_moments(
    key: jax.Array,
    bandits: Bandits,
    advantages: Advantages,
    *,
    group_size: int,
    batches: int,
) -> Moments:
    """Moments of the gradient of one group, for any advantages, biased ones as well.

    Bandits are done one after the other, in memory for M x N^2 numbers by estimator.

    Args:
      key: PRNG key.
      bandits: C bandits; give one of them C times to get the errors of that one.
      advantages: Rewards `[M, N]` to advantages `[..., M, N]` on this project's scale. All leading
        axes see the same groups: ratios between them have small errors.
      group_size: N.
      batches: M >= 2, groups drawn on each bandit.

    Returns:
      Moments with leaves `[C, ...]`, the axes after C those that `advantages` put in front.

    Raises:
      ValueError: If M < 2.

    >>> bandits = Bandits(jnp.zeros((3, 2)), jnp.zeros((3, 2)))
    >>> gradient_moments(
    ...     jax.random.key(0), bandits, lambda rewards: rewards, group_size=4, batches=8
    ... ).trace
    Array([0., 0., 0.], dtype=float32)
    """
    if batches < 2:
        raise ValueError(f"batches: expected at least 2 for a variance, got {batches}")

    def moments(args: tuple[jax.Array, jax.Array, jax.Array]) -> Moments:
        key, logits, rewards = args
        p = jax.nn.softmax(logits)
        actions = jax.random.choice(key, p.size, (batches, group_size), p=p)
        shares = advantages(rewards[actions]) / group_size
        total = jnp.sum(shares, axis=-1)

        likeliest = jnp.argmax(p)
        p = p.at[likeliest].set(0)
        others = jnp.where(actions == likeliest, 0, shares)
        same = actions[:, :, None] == actions[:, None, :]
        pairs = others[..., :, None] * others[..., None, :]
        squared_norm = (
            jnp.sum(jnp.where(same, pairs, 0), axis=(-2, -1))
            - 2 * total * jnp.sum(others * p[actions], axis=-1)
            + total**2 * jnp.sum(p**2)
            + (jnp.sum(others, axis=-1) - total * jnp.sum(p)) ** 2
        )
        by_arm = jnp.zeros((*shares.shape[:-2], p.size), shares.dtype)
        by_arm = by_arm.at[..., actions].add(others) / batches
        mean = by_arm - jnp.mean(total, axis=-1, keepdims=True) * p

        of_mean = jnp.sum(mean**2, axis=-1) + jnp.sum(mean, axis=-1) ** 2
        trace = (jnp.mean(squared_norm, axis=-1) - of_mean) * batches / (batches - 1)
        return Moments(trace, of_mean - trace / batches)

    keys = jax.random.split(key, bandits.logits.shape[0])
    return jax.lax.map(moments, (keys, bandits.logits, bandits.rewards))


@partial(jax.jit, static_argnames=("names", "group_size", "batches"))
def estimator_moments(
    key: jax.Array,
    bandits: Bandits,
    ks: jax.Array,
    *,
    names: Sequence[str],
    group_size: int,
    batches: int,
) -> Moments:
    """Moments of named estimators at several k, all from the same groups.

    Compiled once for each shape: k is traced.

    Args:
      key: PRNG key.
      bandits: C bandits.
      ks: `[Q]`, each with 1 <= k <= N - 1. Estimators of the mean ignore it.
      names: E names out of `estimators.names()`, as a tuple.
      group_size: N.
      batches: Groups drawn on each bandit.

    Returns:
      Moments with leaves `[C, Q, E]`.
    """
    bound = [bind_estimator(name, lambda k: k) for name in names]

    def advantages(rewards: jax.Array) -> jax.Array:
        return jax.vmap(lambda k: jnp.stack([function(rewards, k) for function in bound]))(ks)

    return gradient_moments(key, bandits, advantages, group_size=group_size, batches=batches)


def log2_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Binary logarithm of `ratio`: -1 is half the variance. NaN where it has none."""
    value, error = ratio(numerators, denominators)
    if not value > 0:
        return Estimate(np.nan, np.nan)
    return Estimate(np.log2(value), error / value / np.log(2))
