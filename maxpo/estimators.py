"""Advantage estimators: one function for each published one.

Scale. Every function returns A of the shape of the rewards such that

    (1/N) sum_i A_i grad log pi(y_i)

estimates the gradient of its objective: a loss that is a *mean* over the group needs no further
factor. Papers often write the sum convention; there PKPO's s_i is our A_i / N.

Notation, for a group of N samples and k of them drawn without replacement:

    q_i         mean of the maximum over all k-subsets that contain sample i
    v_k         mean of the maximum over all k-subsets (`maxpo.max_at_k`)
    v_k^(-i)    the same with sample i left out of the group
    EI_i        q_i - v_{k-1}^(-i): by how much sample i is expected to improve the best of k - 1
    d_m         gap m between the sorted rewards, m = 0..N-2 (`maxpo._gap_sums`)

Rules that all of them share:

* The last axis is the group, all others are batch. Samples where the mask `where` is False get 0
  and influence nothing; a group that keeps too few valid samples for its k gets zeros.
* Everything narrower than float64 is cast to float32 before it is ranked, and returned as float32;
  so are integers of any width, by value. float64 stays float64 under x64 and is float32 without.
  (JAX cuts the arguments of its own transformations to 32 bits before any function sees them: give
  integers beyond 2^31 to a function of this module, not to `jax.jit` of it.)
* No gradient flows into rewards or k.
* A NaN or infinity in a group makes the whole group NaN, and no other. A value beyond the range of
  the dtype counts as infinite.
* Centered estimators are exactly 0 on a constant group; ties get bitwise equal advantages.
* k is checked, never clamped. A traced or real-valued k is as good as an int, and changing it
  compiles nothing again; if it is then too large for a group, the group gets zeros, and if it is
  below 1, NaN.
* k may be one for each group, an array that broadcasts to `[...]`: each group gets what a traced k
  of its own gives it, to rounding. It may depend on anything but the rewards of its own group. With
  those it biases the gradient: every proof here holds k fixed while sample i varies, and a k that
  varies with it makes its score correlate with the baseline, too.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maxpo._gap_sums import centered_weights, gap_sums
from maxpo._groups import Groups, Scalar, as_group_k, as_groups, finish
from maxpo._off_policy import off_policy_maxpo
from maxpo._sharding import Function, group_local
from maxpo._subsets import Array, all_below, any_above
from maxpo.order_statistics import max_at_k

__all__ = [
    "Estimator",
    "blended",
    "canonical",
    "dr_grpo",
    "get",
    "grpo",
    "l_statistic",
    "leave_two_out_baseline",
    "max_rl",
    "maxpo",
    "names",
    "off_policy_maxpo",
    "pass_at_k_training",
    "pkpo",
    "pkpo_loo",
    "pkpo_loo_minus_one",
    "reinforce",
    "reweighted_rloo",
    "rloo",
    "standardize",
    "tail_rl",
]

Estimator = Callable[..., jax.Array]

_BY_NAME: dict[str, Estimator] = {}


def _estimator(*, groups: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Decorates an advantage function: `get` knows its name, and it runs where its groups are.

    Args:
      groups: Its arguments that hold one value for each group.
    """

    def decorate(function: Function) -> Function:
        local = group_local(samples=("rewards", "where"), groups=groups)(function)
        _BY_NAME[function.__name__] = local
        return local

    return decorate


@_estimator()
def reinforce(rewards: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """The rewards themselves, without baseline.

        A_i = r_i

    Unbiased for the gradient of the mean reward; not centered: sum_i A_i = N mean(r).

    See "Simple statistical gradient-following algorithms for connectionist reinforcement learning"
    (https://doi.org/10.1007/BF00992696).

    Args:
      rewards: `[..., N]`, any real dtype.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]`, the rewards as float32 (or float64).

    >>> reinforce([1, 0, 1])
    Array([1., 0., 1.], dtype=float32)
    """
    groups = as_groups("reinforce", rewards, where)
    return finish(groups, groups.rewards, 1)


@_estimator()
def rloo(rewards: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """REINFORCE with the mean of the other samples as baseline (leave-one-out).

        A_i = r_i - mean_{j != i} r_j          gap weights (m + 1) / (N - 1), centered

    Unbiased for the gradient of the mean reward; centered. It is `maxpo` at k = 1.

    See "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
    LLMs" (https://arxiv.org/abs/2402.14740).

    Args:
      rewards: `[..., N]`, any real dtype, N >= 2.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If N < 2.

    >>> rloo([3., 1., 2.])
    Array([ 1.5, -1.5,  0. ], dtype=float32)
    """
    groups = as_groups("rloo", rewards, where)
    _check_pair("rloo", groups)
    return _centered(groups, lambda m, n: (m + 1) / _at_least_one(n - 1), needed=2)


@_estimator()
def dr_grpo(rewards: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Rewards minus the group mean, without division by the standard deviation.

        A_i = r_i - mean(r) = (1 - 1/N) rloo_i          gap weights (m + 1) / N, centered

    Estimates (1 - 1/N) times the gradient of the mean reward; centered.

    See "Understanding R1-Zero-Like Training: A Critical Perspective"
    (https://arxiv.org/abs/2503.20783).

    Args:
      rewards: `[..., N]`, any real dtype.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    >>> dr_grpo([3., 1., 2.])
    Array([ 1., -1.,  0.], dtype=float32)
    """
    groups = as_groups("dr_grpo", rewards, where)
    return _mean_centered(groups)


@_estimator()
def grpo(
    rewards: ArrayLike,
    *,
    epsilon: float = 1e-6,
    ddof: int = 1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Rewards standardized within the group.

        A_i = (r_i - mean(r)) / (std(r) + epsilon)

    Centered. Rescales every group by its own standard deviation, so the expected gradient is not
    that of the mean reward: prompts with little spread count more.

    See "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models"
    (https://arxiv.org/abs/2402.03300).

    Args:
      rewards: `[..., N]`, any real dtype.
      epsilon: Added to the standard deviation, in the unit of the rewards; 0 is safe, too.
      ddof: The variance divides by N - ddof: 1 as torch's `std` in most trainers, 0 as NumPy's.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages, without unit; exactly 0 on constant groups.

    Raises:
      ValueError: If epsilon < 0 or ddof is neither 0 nor 1.

    >>> grpo([3., 1., 2.], epsilon=0.)
    Array([ 1., -1.,  0.], dtype=float32)
    """
    _check_std("grpo", epsilon, ddof)
    groups = as_groups("grpo", rewards, where)
    centered = _mean_centered(groups)
    return _over_std(groups, centered, centered, epsilon, ddof)


@_estimator()
def max_rl(rewards: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Maximum-likelihood reinforcement learning: centered rewards over the success rate.

        A_i = (r_i - mean(r)) / mean(r), and 0 unless mean(r) > 0;  rewards in {0, 1}

    Centered. With p the success rate, log p = -sum_{t >= 1} (1 - p)^t / t, and this estimates the
    gradient of that series cut off after t = N - 1. Other rewards have no such meaning: the formula
    is applied as it stands where their mean is positive. Elsewhere it would turn the gradient
    round, and the whole group gets 0, also where only rounding may have made the mean positive.

    See "Maximum Likelihood Reinforcement Learning" (https://arxiv.org/abs/2602.02710).

    Args:
      rewards: `[..., N]`, 0 or 1.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages, without unit.

    >>> max_rl([1, 0, 0, 0])
    Array([ 3., -1., -1., -1.], dtype=float32)
    """
    groups = as_groups("max_rl", rewards, where)
    mean = max_at_k(groups.rewards, 1, where=groups.where)[..., None]
    return _over(groups, _mean_centered(groups), _positive(groups, mean))


@_estimator()
def tail_rl(rewards: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Tail-likelihood reinforcement learning: each gap over the share of samples above it.

        A_i = w_i - mean(w),  w_i = sum_{m < rank(i)} d_m N / (N - 1 - m)
        gap weights  (m + 1) / (N - 1 - m), centered

    It is `max_rl` of "better than t" for every threshold t, added up over t, so rewards of 0 and 1
    give `max_rl`, and a shift of all rewards changes nothing. Centered, and unbiased for the
    gradient of J_1 + J_2 / 2 + .. + J_{N-1} / (N - 1), with J_t the expected best of t samples.

    See "Tail-Likelihood Reinforcement Learning" (https://github.com/Zanette-Labs/TailRL), and
    `docs/estimators.md` for what it estimates.

    Args:
      rewards: `[..., N]`, any real dtype.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    >>> tail_rl([1., 2., 4.])
    Array([-3. , -1.5,  4.5], dtype=float32)
    """
    groups = as_groups("tail_rl", rewards, where)
    return _centered(groups, lambda m, n: (m + 1) / (n - 1 - m), needed=1)


@_estimator(groups=("k",))
def pass_at_k_training(
    rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Pass@k training: the value of the k-subsets that contain a sample, standardized.

        A_i = (q_i - v_k) / sqrt(v_k (1 - v_k)), and 0 where v_k is 0 or 1;  rewards in {0, 1}

    Centered; has the direction of `maxpo` within each group, but rescales every group. Other
    rewards have no such scale: the direction stays, and a group whose v_k is not inside of 0..1
    gets 0.

    See "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning
    Models" (https://arxiv.org/abs/2508.10751).

    Args:
      rewards: `[..., N]`, 0 or 1.
      k: Number of attempts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages, without unit.

    Raises:
      ValueError: If k is known and not in 1..N, or does not broadcast to the groups.

    >>> pass_at_k_training([1, 0, 0, 0], k=2)
    Array([ 1.        , -0.33333334, -0.33333334, -0.33333334], dtype=float32)
    """
    groups = as_groups("pass_at_k_training", rewards, where)
    per_group = as_group_k("pass_at_k_training", k, groups, left_out=0)
    value = max_at_k(groups.rewards, k, where=groups.where)[..., None]
    centered = _canonical(groups, per_group) / per_group
    return _over(groups, centered, jnp.sqrt(jnp.maximum(value * (1 - value), 0)))


@_estimator(groups=("k",))
def pkpo(rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """PKPO without baseline: the mean best of the k-subsets that contain the sample.

        A_i = k q_i = k r_(0) + k sum_{m < rank(i)} d_m
                              + k sum_{m >= rank(i)} d_m [1 - C(m, k-1) / C(N-1, k-1)]

    Unbiased for the gradient of max@k; not centered: sum_i A_i = N k v_k. k = 1 is `reinforce`.

    See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201), where s_i = A_i / N.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If k is known and not in 1..N, or does not broadcast to the groups.

    >>> pkpo([1., 2., 4.], k=2)
    Array([6., 6., 8.], dtype=float32)
    """
    groups = as_groups("pkpo", rewards, where)
    k = as_group_k("pkpo", k, groups, left_out=0)

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        return k + 0 * m, k * _any_above(groups, m, n - 1, k - 1)

    return gap_sums(groups, weights, needed=k, base=k)


@_estimator(groups=("k",))
def pkpo_loo(rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """PKPO with the max@k value of the other samples as baseline.

        A_i = k q_i - k N / (N - 1) v_k^(-i)

    Unbiased for the gradient of max@k; centered only in expectation, and only where v_k is 0:
    sum_i A_i = -k N v_k / (N - 1). The factor N / (N - 1) is the published one; without it this
    is `maxpo`.

    See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201), where s_i^(loo) = A_i / N.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If k is known and not in 1..N-1, or does not broadcast to the groups.

    >>> pkpo_loo([1., 2., 4.], k=2)
    Array([-6., -6.,  2.], dtype=float32)
    """
    groups = as_groups("pkpo_loo", rewards, where)
    k = as_group_k("pkpo_loo", k, groups, left_out=1)

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        # maxpo_i - k / (N - 1) v_k^(-i)
        above, below = centered_weights(k * _all_below(groups, m + 1, n - 1, k), m, n)
        share = k / _at_least_one(n - 1)
        return (
            above - share * _any_above(groups, m + 1, n - 1, k),
            below - share * _any_above(groups, m, n - 1, k),
        )

    return gap_sums(groups, weights, needed=k + 1, base=-k / _at_least_one(groups.valid - 1))


@_estimator(groups=("k",))
def pkpo_loo_minus_one(
    rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """PKPO with the max@(k-1) value of the other samples as baseline: the expected improvement.

        A_i = k (q_i - v_{k-1}^(-i)) = k EI_i
            = k sum_{m < rank(i)} d_m C(m + 1, k - 1) / C(N - 1, k - 1)

    Unbiased for the gradient of max@k and never negative for k >= 2, hence not centered:
    sum_i A_i = N k (v_k - v_{k-1}). The best of no samples counts as 0, so k = 1 is `reinforce`,
    and from there a straight line leads to k = 2; at a k between integers it is not unbiased.
    A trainer that subtracts the batch mean from it optimizes something else (`docs/theory.md`).

    See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201), where
    s_i^(loo-1) = A_i / N.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If k is known and not in 1..N, or does not broadcast to the groups.

    >>> pkpo_loo_minus_one([1., 2., 4.], k=2)
    Array([0., 1., 5.], dtype=float32)
    """
    groups = as_groups("pkpo_loo_minus_one", rewards, where)
    k = as_group_k("pkpo_loo_minus_one", k, groups, left_out=0)

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        return k * _all_below(groups, m + 1, n - 1, k - 1), 0 * m

    return gap_sums(groups, weights, needed=k, base=_missing_sample(k))


@group_local(samples=("rewards", "where"), groups=("k",))
def leave_two_out_baseline(
    rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """What `maxpo` subtracts from `pkpo_loo_minus_one`: the others' mean expected improvement.

    Sample i is left out of the group, and each other sample j, too, where the best of k - 1 that
    it has to improve on is drawn:

        B_i = mean_{j != i} E_{T in [N] - {i, j}, |T| = k-1} [(r_j - max r_T)^+]
            = v_k^(-i) - v_{k-1}^(-i)

    It does not depend on sample i, so subtracting it leaves the gradient unbiased. The best of no
    samples counts as 0, so at k = 1 it is the mean of the others.

    See "On Advantage Estimates for Max@K Policy Gradients" (https://arxiv.org/abs/2606.06080).

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]`, k B_i: on the scale of the advantages.

    Raises:
      ValueError: If k is known and not in 1..N-1, or does not broadcast to the groups.

    >>> leave_two_out_baseline([1., 2., 4.], k=2)
    Array([2., 3., 1.], dtype=float32)
    """
    groups = as_groups("leave_two_out_baseline", rewards, where)
    k = as_group_k("leave_two_out_baseline", k, groups, left_out=1)

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        # C(x, k-1) / C(n-1, k-1) - C(x, k) / C(n-1, k) at x = m + 1 and m, as a product: nothing
        # cancels. The factor passes 1 where a real k leaves no room for a k-subset above the gap.
        rest = _at_least_one(n - k)
        minimum = jnp.minimum if isinstance(rest, jax.Array) else np.minimum
        above = _all_below(groups, m + 1, n - 1, k - 1) * minimum((n - 2 - m) / rest, 1)
        below = _all_below(groups, m, n - 1, k - 1) * (n - 1 - m) / rest
        return k * above, k * below

    return gap_sums(groups, weights, needed=k + 1, base=_missing_sample(k))


@_estimator(groups=("k",))
def maxpo(rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """MaxPO: the expected improvement minus its Leave-Two-Out baseline.

        A_i = k (EI_i - B_i) = k (q_i - v_k^(-i))
        gap weights  k C(m + 1, k) / C(N - 1, k), centered

    Unbiased for the gradient of max@k, and centered in each batch: sum_i A_i = 0. k = 1 is `rloo`.
    With c successes of reward 1 among N samples of reward 0, a success gets
    k C(N - c, k) / C(N - 1, k) and a failure -c / (N - c) times that: a group teaches nothing once
    fewer than k samples fail. For a k between two integers it is unbiased for an objective between
    theirs, a weighted sum of the order statistics of N - 1 samples (`docs/theory.md`).

    See "On Advantage Estimates for Max@K Policy Gradients" (https://arxiv.org/abs/2606.06080).

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If k is known and not in 1..N-1, or does not broadcast to the groups.

    >>> maxpo([1., 2., 4.], k=2)
    Array([-2., -2.,  4.], dtype=float32)
    """
    groups = as_groups("maxpo", rewards, where)
    k = as_group_k("maxpo", k, groups, left_out=1)
    return _max_centered(groups, k)


@_estimator(groups=("k", "weight"))
def blended(
    rewards: ArrayLike, k: ArrayLike, weight: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """The expected improvement minus a fraction of its Leave-Two-Out baseline.

        A_i = k (EI_i - w B_i) = (1 - w) pkpo_loo_minus_one_i + w maxpo_i

    For integers k unbiased for the gradient of max@k under every weight that does not depend on the
    group: a constant, or one computed from other groups, such as those of earlier updates
    (`maxpo.baseline_weight`). A weight computed from the group itself makes it biased. w = 0 is
    `pkpo_loo_minus_one`, w = 1 is `maxpo`, the only one that is centered.

    See `docs/theory.md` for which weight has the least variance.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N - 1; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      weight: w, any real number, also below 0 or above 1: one for all groups, or one for each in a
        shape that broadcasts to `[...]`. May be traced; no gradient flows into it.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If k is known and not in 1..N-1, or k or the weights do not broadcast to the
        groups.

    >>> blended([1., 2., 4.], k=2, weight=0.5)
    Array([-1. , -0.5,  4.5], dtype=float32)
    """
    groups = as_groups("blended", rewards, where)
    k = as_group_k("blended", k, groups, left_out=1)
    batch, dtype = groups.rewards.shape[:-1], groups.rewards.dtype
    w = lax.stop_gradient(jnp.asarray(weight, dtype))
    try:
        w = jnp.broadcast_to(w, batch)[..., None]
    except ValueError:
        raise ValueError(
            f"blended: expected weights that broadcast to the shape {list(batch)} of the groups, "
            f"got shape {list(w.shape)}"
        ) from None

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        improvement = k * _all_below(groups, m + 1, n - 1, k - 1)
        above, below = centered_weights(k * _all_below(groups, m + 1, n - 1, k), m, n)
        improvement, above, below = (jnp.asarray(x, dtype) for x in (improvement, above, below))
        return (1 - w) * improvement + w * above, w * below

    return gap_sums(groups, weights, needed=k + 1, base=(1 - w) * _missing_sample(k))


@_estimator(groups=("k",))
def reweighted_rloo(
    rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """RLOO, reweighted by how likely the other samples fail: the pass@k gradient as a product.

        A_i = w_i (r_i - mean_{j != i} r_j),  w_i = k C(f_i, k - 1) / C(N - 1, k - 1)
              for rewards in {0, 1}, with f_i failures among the other samples
        gap weights  k C(m + 1, k - 1) / C(N - 1, k - 1) (m + 1) / (N - 1)  above, and
                    -k C(m, k - 1) / C(N - 1, k - 1) (N - 1 - m) / (N - 1)  below

    With p the success rate, the gradient of pass@k is k (1 - p)^(k - 1) grad p, and w_i is the
    estimate of that factor without sample i. Other rewards get the sum of this over all thresholds
    of "better than t". Unbiased for the gradient of max@k; not centered for k > 1. It is `blended`
    with the weight (N - k) / (N - 1); k = 1 is `rloo`, k = N is `pkpo_loo_minus_one`.

    See "Beyond Accuracy: A Policy Gradient Reweighting Approach for Pass@K Maximization in LLMs"
    (https://openreview.net/forum?id=Dn3gk9auxd) for the factor, and `docs/estimators.md` for this
    estimate of it.

    Args:
      rewards: `[..., N]`, any real dtype, N >= 2.
      k: Number of samples whose best counts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If N < 2, or k is known and not in 1..N, or does not broadcast to the groups.

    >>> reweighted_rloo([1, 0, 0, 0], k=2)
    Array([ 2.        , -0.44444445, -0.44444445, -0.44444445], dtype=float32)
    """
    groups = as_groups("reweighted_rloo", rewards, where)
    _check_pair("reweighted_rloo", groups)
    k = as_group_k("reweighted_rloo", k, groups, left_out=0)

    def weights(m: Array, n: Scalar) -> tuple[Array, Array]:
        others = _at_least_one(n - 1)
        above = k * _all_below(groups, m + 1, n - 1, k - 1) * (m + 1) / others
        below = k * _all_below(groups, m, n - 1, k - 1) * (n - 1 - m) / others
        return above, -below

    return gap_sums(groups, weights, needed=k)


@_estimator(groups=("k",))
def canonical(rewards: ArrayLike, k: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """`pkpo` minus its batch mean.

        A_i = k (q_i - v_k) = (1 - k / N) maxpo_i
        gap weights  k C(m + 1, k) / C(N, k), centered

    Centered. Estimates (1 - k / N) times the gradient of max@k: the right direction, a step that
    shrinks as k grows, and exactly 0 at k = N. k = 1 is `dr_grpo`.

    See `docs/theory.md` for the derivation.

    Args:
      rewards: `[..., N]`, any real dtype.
      k: Number of samples whose best counts, 1 <= k <= N; an int, or a traced or real value,
        or one for each group in an array that broadcasts to `[...]`.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If k is known and not in 1..N, or does not broadcast to the groups.

    >>> canonical([1., 2., 4.], k=2)
    Array([-0.6666667, -0.6666667,  1.3333334], dtype=float32)
    """
    groups = as_groups("canonical", rewards, where)
    k = as_group_k("canonical", k, groups, left_out=0)
    return _canonical(groups, k)


@_estimator()
def l_statistic(
    rewards: ArrayLike,
    rank_weights: Sequence[float] | ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Policy gradient of any weighted sum of the order statistics of K samples.

    For the objective J = E[sum_j alpha_j r_(j:K)], alpha_1..alpha_K on ascending ranks, `maxpo`'s
    difference with that sum in the place of the maximum:

        A_i = K (mean over K-subsets with i  -  mean over K-subsets of the group without i)
        gap weights  E[X alpha_X],  X ~ Hypergeometric(N - 1, m + 1 marked, K drawn),  centered

    Unbiased for the gradient of J; centered. alpha = (0, .., 0, 1) is `maxpo` at k = K,
    (1, 0, .., 0) the worst of K, 1/K everywhere `rloo`, and a slope between them a risk-averse or
    risk-seeking objective. Weights need not sum to 1.

    See "OrderGrad: Optimizing Beyond the Mean with Order-Statistic Policy Gradient Estimation"
    (https://arxiv.org/abs/2606.06096).

    Args:
      rewards: `[..., N]`, any real dtype.
      rank_weights: `[K]`, alpha_1..alpha_K, 1 <= K <= N - 1; numbers or a (traced) array. Finding
        the gap weights takes O(N (N - K)) time and O(N) memory: once, while tracing, if the
        numbers are known and there is no mask.
      where: Boolean mask that broadcasts to `rewards`, True at valid samples.

    Returns:
      `[..., N]` advantages.

    Raises:
      ValueError: If `rank_weights` is not a vector of 1 to N - 1 numbers.

    >>> l_statistic([1., 2., 4.], [0.5, 0.5])
    Array([-2. , -0.5,  2.5], dtype=float32)
    """
    groups = as_groups("l_statistic", rewards, where)
    dtype = groups.rewards.dtype
    if not isinstance(rank_weights, jax.core.Tracer):
        rank_weights = np.asarray(rank_weights, np.float64)
    else:
        rank_weights = lax.stop_gradient(jnp.asarray(rank_weights, dtype))
    if rank_weights.ndim != 1 or not 1 <= len(rank_weights) <= groups.size - 1:
        raise ValueError(
            f"l_statistic: expected rank_weights of shape [K] with 1 <= K <= N - 1 = "
            f"{groups.size - 1} in groups of N = {groups.size} samples, got shape "
            f"{list(rank_weights.shape)}"
        )
    drawn = rank_weights.shape[0]

    def upper(m: Array, n: Scalar) -> Array:
        return _hypergeometric_mean(rank_weights, groups, n - 1)[..., 1:]

    return _centered(groups, upper, needed=drawn + 1)


@group_local(samples=("advantages", "where"))
def standardize(
    advantages: ArrayLike,
    *,
    epsilon: float = 1e-6,
    ddof: int = 1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Advantages over their standard deviation within the group: any estimator, scaled as `grpo`.

        A_i / (std(A) + epsilon), and 0 where all A_i are the same

    Nothing is subtracted, so it keeps the direction of every group, and centered advantages stay
    centered: `grpo(r)` is `standardize(dr_grpo(r))`. As there, every group is rescaled by a number
    of its own, so the expected gradient is not that of the advantages.

    Args:
      advantages: `[..., N]`, any real dtype.
      epsilon: Added to the standard deviation, in the unit of the advantages; 0 is safe, too.
      ddof: The variance divides by N - ddof: 1 as torch's `std` in most trainers, 0 as NumPy's.
      where: Boolean mask that broadcasts to `advantages`, True at valid samples.

    Returns:
      `[..., N]` advantages, without unit; exactly 0 on constant groups.

    Raises:
      ValueError: If epsilon < 0 or ddof is neither 0 nor 1.

    >>> standardize(maxpo([1., 2., 4.], k=1), epsilon=0., ddof=0)
    Array([-1.069045  , -0.26726124,  1.3363062 ], dtype=float32)
    """
    _check_std("standardize", epsilon, ddof)
    groups = as_groups("standardize", advantages, where)
    return _over_std(groups, groups.rewards, _mean_centered(groups), epsilon, ddof)


def names() -> tuple[str, ...]:
    """The names that `get` knows: every advantage of this module."""
    return tuple(_BY_NAME)


def get(name: str) -> Estimator:
    """The advantage function of that name, for configs and flags.

    Raises:
      ValueError: If there is none, listing those that there are.

    >>> get("maxpo") is maxpo
    True
    """
    if name not in _BY_NAME:
        raise ValueError(f"expected one of the estimators {', '.join(names())}; got {name!r}")
    return _BY_NAME[name]


def _centered(
    groups: Groups, upper: Callable[[Array, Scalar], Array], *, needed: Scalar
) -> jax.Array:
    return gap_sums(groups, lambda m, n: centered_weights(upper(m, n), m, n), needed=needed)


def _mean_centered(groups: Groups) -> jax.Array:
    return _centered(groups, lambda m, n: (m + 1) / _at_least_one(n), needed=1)


def _max_centered(groups: Groups, k: Scalar) -> jax.Array:
    return _centered(groups, lambda m, n: k * _all_below(groups, m + 1, n - 1, k), needed=k + 1)


def _canonical(groups: Groups, k: Scalar) -> jax.Array:
    return _centered(groups, lambda m, n: k * _all_below(groups, m + 1, n, k), needed=k)


def _all_below(groups: Groups, below: Array, total: Scalar, k: Scalar) -> Array:
    return all_below(below, total, k, groups.size, groups.rewards.dtype)


def _any_above(groups: Groups, below: Array, total: Scalar, k: Scalar) -> Array:
    return any_above(below, total, k, groups.size, groups.rewards.dtype)


def _at_least_one(count: Scalar) -> Scalar:
    """A divisor that is only smaller where the result is masked for want of samples."""
    return jnp.maximum(count, 1) if isinstance(count, jax.Array) else count


def _missing_sample(k: Scalar) -> Scalar:
    """Factor of the lowest reward: the best of k - 1 = 0 samples is 0, and not the lowest reward.

    In a straight line between k = 1 and 2, so that annealing k meets no jump.
    """
    return jnp.maximum(2 - k, 0) if isinstance(k, jax.Array) else max(2 - k, 0)


def _check_pair(name: str, groups: Groups) -> None:
    if groups.size < 2:
        raise ValueError(f"{name}: expected groups of N >= 2 samples, got N = 1: no other is left")


def _check_std(name: str, epsilon: float, ddof: int) -> None:
    if not epsilon >= 0:
        raise ValueError(f"{name}: expected epsilon >= 0, got {epsilon!r}")
    if ddof not in (0, 1):
        raise ValueError(f"{name}: expected ddof to be 0 or 1, got {ddof!r}")


@jax.jit
def _over_std(
    groups: Groups,
    advantages: jax.Array,
    centered: jax.Array,
    epsilon: ArrayLike,
    ddof: ArrayLike,
) -> jax.Array:
    """The advantages over the standard deviation of their group; 0 where `centered` is."""
    # In units of the largest one, so that no square underflows.
    scale = jnp.max(jnp.abs(centered), axis=-1, keepdims=True)
    unit = centered / jnp.where(scale == 0, 1, scale)
    freedom = _at_least_one(jnp.asarray(groups.valid - ddof, centered.dtype))
    std = scale * jnp.sqrt(jnp.sum(unit**2, axis=-1, keepdims=True) / freedom)
    return _over(groups, jnp.where(scale == 0, 0, advantages), std + epsilon)


@jax.jit
def _positive(groups: Groups, mean: jax.Array) -> jax.Array:
    """The mean `[..., 1]`, and 0 where rounding cannot tell it from one that is not positive."""
    lowest = jnp.min(groups.rewards, axis=-1, keepdims=True, where=groups.where, initial=jnp.inf)
    # The kernel adds gaps to the lowest reward: nothing cancels unless that is negative.
    added = mean - 2 * jnp.minimum(lowest, 0)
    error = (groups.valid + 1) * jnp.finfo(mean.dtype).eps * added
    return jnp.where(mean > error, mean, 0)


@jax.jit
def _over(groups: Groups, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The ratio, and 0 where the denominator is."""
    zero = denominator == 0
    return finish(groups, jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator)), 1)


def _hypergeometric_mean(alpha: np.ndarray | jax.Array, groups: Groups, total: Scalar) -> Array:
    """E[X alpha_X] for X the marked among K = len(alpha) draws from `total`, by number marked.

    Taking one sample out of size + 1 at random hits one of the L marked ones with probability
    L / (size + 1), so the mean over K-subsets of size + 1 is a convex combination of two means
    over K-subsets of size. No binomial is ever computed, whatever N and K.

    Returns:
      For L = 0..N-1 marked, of the rank of the rewards; `[1, .., N]` if all is known.
    """
    drawn, row = alpha.shape[0], (1,) * (groups.rewards.ndim - 1) + (groups.size,)

    if isinstance(alpha, np.ndarray) and isinstance(total, int):
        mean = np.zeros(groups.size)
        mean[: drawn + 1] = np.append(0.0, alpha * np.arange(1, drawn + 1))
        for size in range(drawn + 1, total + 1):
            hit = np.minimum(np.arange(groups.size) / size, 1.0)
            mean = hit * np.roll(mean, 1) + (1 - hit) * mean
        return mean.reshape(row)

    dtype = groups.rewards.dtype
    marked = jnp.arange(groups.size, dtype=dtype).reshape(row)
    values = jnp.asarray(alpha, dtype) * jnp.arange(1, drawn + 1, dtype=dtype)
    start = jnp.zeros(groups.size, dtype).at[1 : drawn + 1].set(values)
    start = jnp.broadcast_to(start, groups.rewards.shape)

    def step(size: jax.Array, mean: jax.Array) -> jax.Array:
        hit = jnp.minimum(marked / size.astype(dtype), 1)
        grown = hit * jnp.roll(mean, 1, axis=-1) + (1 - hit) * mean
        return jnp.where(size.astype(dtype) <= total, grown, mean)

    return lax.fori_loop(drawn + 1, groups.size, step, start)
