"""The variance of a group's gradient, measured from two groups of each of some prompts.

Half the squared distance of two independent groups of one prompt is an unbiased estimate of the
trace of the covariance given that prompt: what differs between prompts cancels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel
from maxpo._estimates import Estimate, ratio
from maxpo.lm.model.policy import NOTHING_FROZEN
from maxpo.lm.training.update import Batch, accumulated_gradient, loss_and_metrics

__all__ = ["GroupGradient", "make_group_gradient", "pair_variances", "ratio_of_means"]

GroupGradient = Callable[[nnx.State, Batch], nnx.State]
"""Parameters and a batch of one group with its advantages to the gradient of its loss."""


def make_group_gradient(
    graph: nnx.GraphDef,
    rl: ConfigDict,
    *,
    layout: Callable[[Any], Any] = lambda params: None,
    frozen: nnx.State = NOTHING_FROZEN,
) -> GroupGradient:
    """The compiled gradient of the policy's part of the loss: no KL penalty, no entropy bonus.

    Args:
      graph: The policy's structure.
      rl: The `rl` of a config.
      layout: Where parameters lie on a mesh; the gradient lies there, too.
      frozen: What the policy has beside trained parameters.
    """
    policy_alone = rl.copy_and_resolve_references()
    policy_alone.entropy_coefficient = 0.0

    @jax.jit
    def gradient(frozen: nnx.State, params: nnx.State, group: Batch) -> nnx.State:
        loss = partial(loss_and_metrics, graph, policy_alone, frozen=frozen)
        found, _ = accumulated_gradient(loss, params, group, 1)
        return parallel.constrain_to(found, layout(found))

    return partial(gradient, frozen)


def pair_variances(gradient: GroupGradient, params: nnx.State, pairs: Batch) -> np.ndarray:
    """Estimates of the trace of the covariance of a group's gradient, one for each prompt.

    There are never more than two gradients in memory.

    Args:
      gradient: Of one group.
      params: The policy's parameters.
      pairs: 2 G groups on the host with their advantages, the two of a prompt beside each other.

    Returns:
      `[G]`, half the squared distance of the gradients of each pair.
    """
    found = []
    for place in range(0, len(pairs.rewards), 2):
        first, second = (
            gradient(params, jax.tree.map(lambda x, i=i: x[i : i + 1], pairs))
            for i in (place, place + 1)
        )
        # Waits for the device, which would else allocate the gradients of all pairs.
        found.append(float(parallel.fetch(_squared_distance(first, second))) / 2)
    return np.array(found)


def ratio_of_means(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """The ratio of the means of two samples, both `[G]`, with the error of the delta method.

    NaN where all denominators are 0; the error alone where a single one is not: that tells of none.
    """
    found = ratio(numerators, denominators)
    if np.count_nonzero(denominators) == 1:
        return found._replace(error=np.nan)
    return found


@jax.jit
def _squared_distance(first: nnx.State, second: nnx.State) -> jax.Array:
    return optax.tree.norm(optax.tree.sub(first, second), squared=True)
