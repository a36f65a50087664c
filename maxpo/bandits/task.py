"""Contextual bandits whose objective E[max of k rewards] is known in closed form.

Both tasks offer what a study of estimators needs: `observations`, rewards of sampled actions, a
policy to start from, and `expected_max(policy, k)`, the exact objective J_k of any policy, for any
real k >= 1. Tasks are pytrees, so that one function serves a batch of them under `jax.vmap`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from maxpo.bandits.categorical import Categorical
from maxpo.bandits.gaussian import Gaussian

__all__ = [
    "REWARD_LAWS",
    "ContextualBandit",
    "RewardLaw",
    "SquareOnInterval",
    "bernoulli",
    "expected_max",
    "expected_max_of_square",
    "gaussian",
    "heavy_tailed",
    "make_contextual_bandit",
    "uneven",
]

RewardLaw = Callable[[jax.Array, tuple[int, ...], float], jax.Array]


def gaussian(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Rewards ~ N(0, std^2)."""
    return std * jax.random.normal(key, shape)


def bernoulli(key: jax.Array, shape: tuple[int, ...], success_rate: float) -> jax.Array:
    """Rewards 0 or 1: each arm is right with probability `success_rate`."""
    return jax.random.bernoulli(key, success_rate, shape).astype(jnp.float32)


def uneven(key: jax.Array, shape: tuple[int, ...], highest: float) -> jax.Array:
    """Rewards 0 or 1, in contexts from the hardest to the easiest.

    The number of right arms grows by one factor from context to context, from a single one to
    `highest` of all arms.
    """
    contexts, arms = shape
    right = np.round(np.geomspace(1, max(highest * arms, 1), contexts))
    order = jnp.argsort(jax.random.uniform(key, shape), axis=-1)
    return (order < right[:, None]).astype(jnp.float32)


def heavy_tailed(key: jax.Array, shape: tuple[int, ...], degrees_of_freedom: float) -> jax.Array:
    """Rewards ~ |Student's t|: power-law tails, the heavier the fewer degrees of freedom."""
    return jnp.abs(jax.random.t(key, degrees_of_freedom, shape))


REWARD_LAWS: dict[str, RewardLaw] = {
    law.__name__: law for law in (gaussian, bernoulli, heavy_tailed, uneven)
}


class ContextualBandit(NamedTuple):
    """A table of rewards for contexts that are seen through features.

    Attributes:
      observations: `[C, D]` features of the contexts.
      rewards: `[C, A]` reward of each arm in each context; an arm always pays the same.
    """

    observations: jax.Array
    rewards: jax.Array

    def reward(self, actions: jax.Array) -> jax.Array:
        """Rewards `[C, N]` of actions `[C, N]`, row by context."""
        return jnp.take_along_axis(self.rewards, actions, axis=-1)

    def make_policy(self, rngs: nnx.Rngs) -> Categorical:
        """A linear softmax policy, uniform at the start."""
        return Categorical(self.observations.shape[-1], self.rewards.shape[-1], rngs=rngs)

    def expected_max(self, policy: Categorical, k: ArrayLike) -> jax.Array:
        """Exact J_k of the policy, averaged over contexts."""
        probabilities = jax.nn.softmax(policy.logits(self.observations))
        return jnp.mean(expected_max(probabilities, self.rewards, k))


def make_contextual_bandit(
    key: jax.Array,
    *,
    num_contexts: int,
    num_features: int,
    num_arms: int,
    law: RewardLaw,
    law_parameter: float,
) -> ContextualBandit:
    """Draws a bandit.

    Args:
      key: PRNG key.
      num_contexts: C.
      num_features: D. Contexts get random features of unit mean square norm. With D < C they look
        alike to a linear policy, which then has to spread its samples over the arms that are good
        in one of them or another: there the best policies for J_1 and for J_k differ. D = 0 shows
        the context itself (one-hot), where they agree.
      num_arms: A.
      law: Where the rewards of the arms come from, one of `REWARD_LAWS`.
      law_parameter: Its parameter: the standard deviation, success rate or degrees of freedom.
    """
    reward_key, feature_key = jax.random.split(key)
    if num_features == 0:
        observations = jnp.eye(num_contexts)
    else:
        observations = jax.random.normal(feature_key, (num_contexts, num_features))
        observations /= num_features**0.5
    return ContextualBandit(observations, law(reward_key, (num_contexts, num_arms), law_parameter))


def expected_max(probabilities: jax.Array, rewards: jax.Array, k: ArrayLike) -> jax.Array:
    """E[max of k rewards] of a discrete distribution, exactly.

        J_k = r_max - sum_m d_m F_m^k

    with d_m the gaps between the sorted rewards and F_m the probability of those below gap m.

    Args:
      probabilities: `[..., A]`, summing to 1.
      rewards: `[..., A]`; the two broadcast to each other.
      k: Any real k >= 1.

    Returns:
      `[...]`, in the unit of the rewards. Differentiable in the probabilities.

    >>> expected_max(jnp.array([0.5, 0.5]), jnp.array([0., 1.]), 2)
    Array(0.75, dtype=float32)
    """
    order = jnp.argsort(rewards, axis=-1)
    ascending = jnp.take_along_axis(rewards, order, axis=-1)
    probabilities, order = jnp.broadcast_arrays(probabilities, order)
    below = jnp.cumsum(jnp.take_along_axis(probabilities, order, axis=-1), axis=-1)[..., :-1]
    return ascending[..., -1] - jnp.sum(jnp.diff(ascending) * below**k, axis=-1)


class SquareOnInterval(NamedTuple):
    """The continuous toy problem of PKPO: reward x^2 on [0, 1] and 0 elsewhere.

    With x ~ N(theta, std^2) more risk pays the more samples are drawn: the best theta moves towards
    the edge at 1 as k grows.

    See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201).

    Attributes:
      observations: `[C, 1]`, nothing to see: one row for each group that an update draws.
      mean: Where theta starts.
      std: Standard deviation of the policy, 0.1 as published.
    """

    observations: jax.Array
    mean: float
    std: float

    def reward(self, actions: jax.Array) -> jax.Array:
        """Rewards of actions of any shape."""
        return jnp.where((actions >= 0) & (actions <= 1), actions**2, 0)

    def make_policy(self, rngs: nnx.Rngs) -> Gaussian:
        """The policy N(mean, std^2)."""
        del rngs
        return Gaussian(self.mean, self.std)

    def expected_max(self, policy: Gaussian, k: ArrayLike) -> jax.Array:
        """Exact J_k of the policy; see `expected_max_of_square`."""
        return expected_max_of_square(policy.mean[...], self.std, k)


def expected_max_of_square(mean: ArrayLike, std: float, k: ArrayLike) -> jax.Array:
    """E[max of k rewards] of `SquareOnInterval`, by quadrature.

        J_k = int_0^1 1 - F(r)^k dr ,   1 - F(r) = P(sqrt(r) < x <= 1)

    Gauss-Legendre in u = sqrt(r), where the integrand is smooth on the scale of `std`.

    Args:
      mean: theta, a scalar.
      std: Standard deviation of x.
      k: Any real k >= 1.

    Returns:
      The objective, exact to float32 for std >= 0.02. Differentiable in `mean`.

    >>> print(f"{expected_max_of_square(0.5, 0.1, 1):.4f}")  # mean^2 + std^2
    0.2600
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = jnp.asarray((nodes + 1) / 2)  # From [-1, 1] to [0, 1], hence half the weights.
    cdf = jax.scipy.stats.norm.cdf
    above = cdf((1 - jnp.asarray(mean)) / std) - cdf((u - mean) / std)
    return jnp.sum(weights * u * (1 - (1 - above) ** k))
