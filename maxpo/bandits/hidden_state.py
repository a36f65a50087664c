"""A contextual bandit with fresh contexts and a state that the policy cannot see.

Two things that no table of rewards has: no context ever comes twice, so that what is learned must
carry over, and which arms are right depends on a hidden state as well. A linear policy can find the
good arms of every state but cannot tell the states apart: it has to spread its samples over the
arms of all of them, and then the best policies for the mean reward and for the best of k differ.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maxpo.bandits.task import expected_max

__all__ = ["HiddenStateBandit", "make_hidden_state_bandit"]


class HiddenStateBandit(NamedTuple):
    """Rewards that are a function of the context, the hidden state and the arm.

    With w the weights, x a context of length 1 and h its state, arm a scores w[h, a] . x. The
    scores are the rewards, or those above the threshold pay 1 and the others 0.

    Attributes:
      weights: `[H, A, D]`.
      threshold: Score above which an arm is right, a scalar; None where scores are the rewards.
    """

    weights: jax.Array
    threshold: jax.Array | None

    def draw(self, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Draws contexts, uniform on the sphere, and a hidden state for each.

        Returns:
          Observations `[count, D]`, and the rewards of all arms `[count, A]`.
        """
        context_key, state_key = jax.random.split(key)
        contexts = self.contexts(context_key, count)
        states = jax.random.randint(state_key, (count,), 0, self.weights.shape[0])
        scores = jnp.einsum("cad,cd->ca", self.weights[states], contexts)
        return contexts, self._rewards(scores)

    def contexts(self, key: jax.Array, count: int) -> jax.Array:
        """Contexts `[count, D]` alone, of length 1."""
        x = jax.random.normal(key, (count, self.weights.shape[-1]))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def table(self, contexts: jax.Array) -> jax.Array:
        """Rewards `[C, H, A]` of all arms in all states, for contexts `[C, D]`."""
        return self._rewards(jnp.einsum("had,cd->cha", self.weights, contexts))

    def expected_max(self, probabilities: jax.Array, table: jax.Array, k: ArrayLike) -> jax.Array:
        """Exact J_k, averaged over contexts and hidden states.

        Args:
          probabilities: `[..., C, A]`, the policy in each context.
          table: `[C, H, A]`, see `table`.
          k: Any real k >= 1.

        Returns:
          `[...]`, in the unit of the rewards. Differentiable in the probabilities.
        """
        if self.threshold is None:
            values = expected_max(probabilities[..., None, :], table, k)
        else:  # Only two rewards: no need to sort the arms.
            fails = jnp.einsum("...ca,cha->...ch", probabilities, 1 - table)
            values = 1 - fails**k
        return jnp.mean(values, axis=(-2, -1))

    def _rewards(self, scores: jax.Array) -> jax.Array:
        return scores if self.threshold is None else (scores > self.threshold).astype(jnp.float32)


def make_hidden_state_bandit(
    key: jax.Array,
    *,
    hidden_states: int,
    num_arms: int,
    num_features: int,
    success_rate: ArrayLike | None,
) -> HiddenStateBandit:
    """Draws a bandit.

    Args:
      key: PRNG key.
      hidden_states: H >= 1; with one there is nothing hidden.
      num_arms: A.
      num_features: D. Weights are independent and standard normal, and contexts have length 1, so
        scores are standard normal, too.
      success_rate: Share of right arms, between 0 and 1, on average over bandits and contexts: the
        success rate of a uniform policy. None for Gaussian rewards, the scores themselves.
    """
    weights = jax.random.normal(key, (hidden_states, num_arms, num_features))
    if success_rate is None:
        return HiddenStateBandit(weights, None)
    return HiddenStateBandit(weights, -jax.scipy.special.ndtri(jnp.asarray(success_rate)))
