"""Moments of the gradient, coordinate by coordinate, at the policies that training passes through.

For one group, with g_j the gradient by coordinate j,

    mu_j = E[g_j] ,   sigma_j^2 = Var(g_j) .

mu is the same for all unbiased estimators, and known in closed form but for the contexts, which are
sampled; two independent samples of them make its squares unbiased. Second moments are sampled.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxpo.bandits.hidden_state import HiddenStateBandit
from maxpo.methods import bind_estimator
from maxpo.studies.centering.cells import BLOCK
from maxpo.studies.centering.training import (
    SEEDS,
    Shape,
    draw_groups,
    fold_in,
    gradients,
    make_tasks,
    sample_groups,
)

__all__ = ["Moments", "ascents", "expected_directions", "measure"]

# Uses of one seed's key, apart from those of training.
_SIGNAL, _NOISE, _DIRECTIONS = 3, 4, 5


class Moments(NamedTuple):
    """Moments of one group's gradient.

    Attributes:
      means: `[2, T, S, A, D]`, two independent estimates of mu.
      second: `[E, T, S, A, D]`, E[g^2].
    """

    means: jax.Array
    second: jax.Array


def ascents(
    shape: Shape,
    names: tuple[str, ...],
    tasks: HiddenStateBandit,
    keys: jax.Array,
    policies: jax.Array,
    k: jax.Array,
) -> jax.Array:
    """One update's gradient under several estimators, of the same groups.

    Args:
      shape: Of the training that the policies come from.
      names: The E estimators.
      tasks: From `make_tasks`.
      keys: `[S]`, used up.
      policies: `[..., S, A, D]`.
      k: Of the estimators.

    Returns:
      `[E, ..., S, A, D]`.
    """
    drawn = draw_groups(tasks, keys, shape.groups_per_update, shape.group_size)
    probabilities, actions, rewards = sample_groups(policies, *drawn)
    advantages = jnp.stack([bind_estimator(name, lambda k: k)(rewards, k) for name in names])
    by_logits = gradients(probabilities, actions, advantages) / shape.groups_per_update
    return jnp.einsum("...sga,sgd->...sad", by_logits, drawn[0])


@partial(jax.jit, static_argnames=("shape", "names", "groups"))
def measure(
    shape: Shape,
    names: tuple[str, ...],
    groups: int,
    keys: jax.Array,
    policies: jax.Array,
    k: jax.Array,
    success_rate: jax.Array,
) -> Moments:
    """Measures several estimators on the same groups.

    Args:
      shape: Of the training that the policies come from. Static.
      names: The E estimators. Static.
      groups: How many are drawn for each policy, a multiple of `BLOCK`, and contexts for each
        estimate of the mean. Static.
      keys: `[S]` keys of the seeds, as training had them.
      policies: `[T, S, A, D]`.
      k: Of the estimators and of the objective.
      success_rate: As in training.
    """
    tasks = make_tasks(shape, keys, success_rate)
    bound = [bind_estimator(name, lambda k: k) for name in names]

    def mean(number: jax.Array) -> jax.Array:
        def of_seed(task: HiddenStateBandit, policy: jax.Array, key: jax.Array) -> jax.Array:
            contexts = task.contexts(key, groups)

            def objective(policy: jax.Array) -> jax.Array:
                probabilities = jax.nn.softmax(contexts @ policy.T)
                return task.expected_max(probabilities, task.table(contexts), k)

            return jax.grad(objective)(policy)

        over_seeds = jax.vmap(of_seed, (SEEDS, 0, 0))
        own = fold_in(keys, _SIGNAL, number)
        return jax.lax.map(lambda policy: over_seeds(tasks, policy, own), policies)

    def block(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        drawn = draw_groups(tasks, fold_in(keys, _NOISE, number), BLOCK, shape.group_size)
        probabilities, actions, rewards = sample_groups(policies, *drawn)
        advantages = jnp.stack([function(rewards, k) for function in bound])
        by_logits = gradients(probabilities, actions, advantages)
        # The gradient by the weights is an outer product, so its square is.
        return total + jnp.einsum("etsga,sgd->etsad", by_logits**2, drawn[0] ** 2), None

    zeros = jnp.zeros((len(names), *policies.shape))
    total, _ = jax.lax.scan(block, zeros, jnp.arange(groups // BLOCK))
    return Moments(jnp.stack([mean(jnp.asarray(n)) for n in range(2)]), total / groups)


@partial(jax.jit, static_argnames=("shape", "names", "updates"))
def expected_directions(
    shape: Shape,
    names: tuple[str, ...],
    updates: int,
    keys: jax.Array,
    policies: jax.Array,
    k: jax.Array,
    success_rate: jax.Array,
    squares: jax.Array,
    own_share: jax.Array,
) -> jax.Array:
    """E[g / sqrt(w g^2 + (1 - w) s^2)] of one update's gradient, by sampling.

    Args:
      shape: As in `measure`. Static.
      names: The E estimators. Static.
      updates: How many are drawn, of `shape.groups_per_update` groups each. Static.
      keys: As in `measure`.
      policies: `[T, S, A, D]`.
      k: Of the estimators.
      success_rate: As in training.
      squares: `[E, T, S, A, D]`, s^2 = E[g^2] of one update; 0 where there never was a gradient.
      own_share: w, the share of a gradient in its own denominator.

    Returns:
      `[E, T, S, A, D]`, 0 where s is.
    """
    tasks = make_tasks(shape, keys, success_rate)

    def update(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        own = fold_in(keys, _DIRECTIONS, number)
        g = ascents(shape, names, tasks, own, policies, k)
        square = own_share * g**2 + (1 - own_share) * squares
        return total + jnp.where(squares > 0, g / jnp.sqrt(square), 0), None

    total, _ = jax.lax.scan(update, jnp.zeros_like(squares), jnp.arange(updates))
    return total / updates
