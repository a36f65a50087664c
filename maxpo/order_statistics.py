"""Values of groups of rewards: the expected best of k samples, and rewards warped for it.

`maxpo._gap_sums` has the kernel, and `docs/theory.md` the derivations.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maxpo._gap_sums import gap_numbers, gap_sums, value_of_rises
from maxpo._groups import Scalar, as_group_k, as_groups, finish
from maxpo._sharding import group_local
from maxpo._subsets import Array, all_below, any_above

__all__ = ["max_at_k", "pass_at_k", "powers_up_to", "rank_warp"]


@group_local(samples=("rewards", "where"), groups=("k",), reduces=True)
def max_at_k(rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    r"""Unbiased estimate of the expected best of k samples, from N >= k samples.

    The mean of the maximum over all k-subsets of the group:

        v_k = C(N, k)^{-1} sum_{|S| = k} max_{i in S} r_i
            = r_(0) + sum_m d_m [1 - C(m + 1, k) / C(N, k)]

    k = 1 is the mean, k = N the maximum, and for 0/1 rewards it is `pass_at_k`.

    See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201).

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[...]`, in the unit of the rewards, without gradient. 0 where a mask leaves fewer than k
      samples: exclude such groups from averages.

    Raises:
      ValueError: If k is known and not in 1..N, or does not broadcast to the groups.

    >>> max_at_k([1., 2., 4.], k=2)
    Array(3.3333335, dtype=float32)
    """
    groups = as_groups("max_at_k", rewards, where)
    k = as_group_k("max_at_k", k, groups, left_out=0)
    m, n = gap_numbers(groups, k), groups.valid
    rises = any_above(m + 1, n, k, groups.size, groups.rewards.dtype)
    return value_of_rises(groups, rises, k)[..., 0]


@group_local(samples=("correct", "where"), groups=("k",), reduces=True)
def pass_at_k(correct: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Unbiased estimate of the probability that any of k samples is correct, from N >= k samples.

    With c correct ones among the N samples:

        pass@k = 1 - C(N - c, k) / C(N, k)

    It is `max_at_k` of 0/1 rewards, at the cost of a sum instead of a sort.

    See "Evaluating Large Language Models Trained on Code" (https://arxiv.org/abs/2107.03374).

    Args:
      correct: `[..., N]`, booleans, or numbers that are 0 or 1.
      k: Number of attempts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `correct`, True at valid samples.

    Returns:
      `[...]` probabilities, without gradient. A group that holds a value other than 0 and 1 gets
      NaN. 0 where a mask leaves fewer than k samples: exclude such groups from averages.

    Raises:
      ValueError: If k is known and not in 1..N, or does not broadcast to the groups.

    >>> pass_at_k([True, False, False, False], k=2)
    Array(0.5, dtype=float32)
    """
    groups = as_groups("pass_at_k", correct, where)
    k = as_group_k("pass_at_k", k, groups, left_out=0)
    rewards = groups.rewards
    failed, binary = rewards == 0, (rewards == 0) | (rewards == 1)
    if groups.where is not None:
        failed, binary = failed & groups.where, binary | ~groups.where
    failures = jnp.sum(failed, axis=-1, keepdims=True, dtype=jnp.int32)
    value = any_above(failures, groups.valid, k, groups.size, rewards.dtype)
    value = jnp.where(jnp.all(binary, axis=-1, keepdims=True), value, jnp.nan)
    return finish(groups, value, k)[..., 0]


@group_local(samples=("rewards", "where"), groups=("k",))
def rank_warp(rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Rewards whose group-centered mean-policy gradient is the max@k policy gradient.

    A monotone transform within each group, the identity up to a shift at k = 1:

        r~_i = sum_{m < rank(i)} d_m w_m ,   w_m = (N - 1) / (m + 1) C(m + 1, k) / C(N - 1, k)

    `estimators.rloo(rank_warp(r, k)) == estimators.maxpo(r, k) / k`, so any trainer that subtracts
    the mean reward of the group optimizes max@k when it is fed these instead of the rewards. One
    that subtracts the mean over all N samples, as Dr. GRPO does, gets (1 - 1/N) / k times `maxpo`.

    See "On Advantage Estimates for Max@K Policy Gradients" (https://arxiv.org/abs/2606.06080) for
    the advantage; `docs/theory.md` derives the warp.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]`, in the unit of the rewards, 0 for the lowest sample, without gradient.

    Raises:
      ValueError: If k is known and not in 1..N-1, or does not broadcast to the groups.

    >>> rank_warp([5., 6., 7.], k=2)
    Array([0., 0., 1.], dtype=float32)
    """
    groups = as_groups("rank_warp", rewards, where)
    k = as_group_k("rank_warp", k, groups, left_out=1)

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        odds = all_below(m + 1, n - 1, k, groups.size, groups.rewards.dtype)
        return odds * (n - 1) / (m + 1), 0 * m

    return gap_sums(groups, weights, needed=k + 1)


def powers_up_to(n: int) -> tuple[int, ...]:
    """1, 2, 4, .. and n: the k of every curve over n samples.

    >>> powers_up_to(12)
    (1, 2, 4, 8, 12)
    """
    powers = [2**power for power in range(n.bit_length()) if 2**power < n]
    return (*powers, n)
