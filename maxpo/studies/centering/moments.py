"""Moments of the gradient, coordinate by coordinate, at the policies that training passes through.

For one group, with g_j the gradient by coordinate j,

    mu_j = E[g_j] ,   sigma_j^2 = Var(g_j) ,   kappa_j = E[(g_j - mu_j)^3] .

mu is the same for all unbiased estimators, and known in closed form but for the contexts, which are
sampled; two independent samples of them make its squares unbiased. The others are sampled.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxpo.bandits.hidden_state import HiddenStateBandit
from maxpo.methods import bind_estimator
from maxpo.studies.centering.training import (
    SEEDS,
    Shape,
    draw_groups,
    fold_in,
    gradients,
    make_tasks,
    sample_groups,
)

__all__ = ["Moments", "measure"]

# Uses of one seed's key, apart from those of training.
_SIGNAL, _NOISE = 3, 4
_BLOCK = 8  # Groups that are drawn at once.


class Moments(NamedTuple):
    """Moments of one group's gradient.

    Attributes:
      means: `[2, T, S, A, D]`, two independent estimates of mu.
      second: `[E, T, S, A, D]`, E[g^2].
      third: `[E, T, S, A, D]`, E[g^3].
    """

    means: jax.Array
    second: jax.Array
    third: jax.Array


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
      groups: How many are drawn for each policy, a multiple of 8, and contexts for each estimate of
        the mean. Static.
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

    def block(sums: tuple[jax.Array, ...], number: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        drawn = draw_groups(tasks, fold_in(keys, _NOISE, number), _BLOCK, shape.group_size)
        contexts = drawn[0]
        probabilities, actions, rewards = sample_groups(policies, *drawn)
        added = []
        for function in bound:
            by_logits = gradients(probabilities, actions, function(rewards, k))
            # The gradient by the weights is an outer product, so its powers are.
            added.append(
                [
                    jnp.einsum("tsga,sgd->tsad", by_logits**power, contexts**power)
                    for power in (2, 3)
                ]
            )
        second, third = (jnp.stack(moment) for moment in zip(*added, strict=True))
        return (sums[0] + second, sums[1] + third), None

    zeros = jnp.zeros((len(bound), *policies.shape))
    sums, _ = jax.lax.scan(block, (zeros, zeros), jnp.arange(groups // _BLOCK))
    return Moments(
        jnp.stack([mean(jnp.asarray(number)) for number in range(2)]),
        *(total / groups for total in sums),
    )
