"""MaxPO for samples of an older policy; `maxpo.estimators` is its public door."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maxpo._gap_sums import centered_weights, gap_sums, rank_keys
from maxpo._groups import Groups, Scalar, as_group_k, as_groups
from maxpo._numbers import as_floats
from maxpo._sharding import group_local
from maxpo._subsets import Array, all_below

__all__ = ["off_policy_maxpo"]


@group_local(samples=("rewards", "ratios", "where"), groups=("k",))
def off_policy_maxpo(
    rewards: ArrayLike, ratios: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """MaxPO of samples that an older policy drew, to first order in what has changed since.

        A_i = k (mean over T of (1 + sum_{j in T} (ratio_j - 1)) (r_i - max r_T)^+  -  B_i)
            = maxpo_i + k (k - 1) sum_{m < rank(i)} d_m C(m + 1, k - 1) / C(N - 1, k - 1)
                                       mean_{j below gap m} (ratio_j - 1)

    with T the (k - 1)-subsets of the other samples and B_i the Leave-Two-Out baseline. The best of
    k samples depends on the policy through all k of them, so each subset needs the ratios of its
    other members, too: the product of ratio_j over T, of which this is the first-order part. The
    ratio of sample i itself is left to the loss (`maxpo.losses.clipped_ratio_loss`): (1/N) sum_i
    ratio_i A_i grad log pi(y_i) estimates the gradient of max@k under the new policy: unbiased for
    k <= 2, where no product has two factors, and with a bias of second order in ratio - 1 beyond;
    that of `maxpo` in its place is of first order. Where all ratios are 1 it is `maxpo`, bit for
    bit; elsewhere it is not centered.

    See "The Best of N Worlds: Aligning Reinforcement Learning with Best-of-N Sampling via max@k
    Optimisation" (https://arxiv.org/abs/2510.23393) for off-policy max@k, and `docs/estimators.md`
    for this form.

    Args:
      rewards: `[..., N]`, any real dtype.
      ratios: pi_new(y_i) / pi_old(y_i) of whole samples, positive, in a shape that broadcasts to
        `rewards`. No gradient flows into them.
      k: Number of samples whose best counts, 1 <= k <= N - 1; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages. A ratio that is not finite makes its group NaN.

    Raises:
      ValueError: If k is known and not in 1..N-1, or k or the ratios do not broadcast.

    >>> off_policy_maxpo([1., 2., 4.], [1.5, 1., 1.], k=2)
    Array([-2. , -1.5,  5.5], dtype=float32)
    """
    groups = as_groups("off_policy_maxpo", rewards, where)
    k = as_group_k("off_policy_maxpo", k, groups, left_out=1)
    groups, changes = _changes(groups, ratios)
    changes_below = _means_below(groups, changes)
    size, dtype = groups.size, groups.rewards.dtype

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        above, below = centered_weights(k * all_below(m + 1, n - 1, k, size, dtype), m, n)
        correction = k * (k - 1) * all_below(m + 1, n - 1, k - 1, size, dtype)
        above, below, correction = (jnp.asarray(x, dtype) for x in (above, below, correction))
        return above + correction * changes_below, below

    return gap_sums(groups, weights, needed=k + 1)


def _changes(groups: Groups, ratios: ArrayLike) -> tuple[Groups, jax.Array]:
    """Ratio - 1 in the shape of the rewards, 0 where masked; groups with a bad one become NaN."""
    expected = "off_policy_maxpo: expected ratios"
    dtype = groups.rewards.dtype
    given = lax.stop_gradient(as_floats(ratios, expected)).astype(dtype)
    try:
        changes = jnp.broadcast_to(given, groups.rewards.shape) - 1
    except ValueError:
        raise ValueError(
            f"{expected} that broadcast to the shape {list(groups.rewards.shape)} of the rewards, "
            f"got shape {list(given.shape)}"
        ) from None
    if groups.where is not None:
        changes = jnp.where(groups.where, changes, 0)
    rewards = jnp.where(jnp.isfinite(changes), groups.rewards, jnp.nan)
    return groups._replace(rewards=rewards), changes


@jax.jit
def _means_below(groups: Groups, changes: jax.Array) -> jax.Array:
    """Means of `changes` over the samples below each gap, `[..., N - 1]`."""
    # By both keys, so that the order in which tied samples come changes no bit of the sums.
    _, ascending = lax.sort((rank_keys(groups), changes), dimension=-1, num_keys=2)
    counts = jnp.arange(1, groups.size, dtype=changes.dtype)
    return jnp.cumsum(ascending, axis=-1)[..., :-1] / counts.reshape(
        (1,) * (changes.ndim - 1) + (-1,)
    )
