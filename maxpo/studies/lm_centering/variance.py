"""The variance of a group's gradient given its prompt, and the scores that explain it.

A group's gradient is a weighted sum of the scores `s_i` of its samples, the gradients of their
log-probabilities,

    g = -(1/N) sum_i A_i s_i ,

so one set of scores serves all methods. Two independent groups of a prompt estimate the trace of
the covariance given that prompt, without bias, by half their squared distance `|g - g'|^2 / 2`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.training.gradient_variance import GroupGradient, make_group_gradient
from maxpo.lm.training.update import Batch
from maxpo.methods import parse_methods
from maxpo.studies.lm_centering.policy import Draw, loss_settings
from maxpo.studies.lm_centering.puzzle import Puzzles, grade, in_format
from maxpo.studies.variance import moments

__all__ = ["KINDS", "Measure", "Measured", "make_measure", "summarize"]

KINDS = ("right", "wrong", "out_of_format")
"""What a sample may be; `wrong` ones are in format."""


class Measured(NamedTuple):
    """What one seed's prompts show, for M methods and the kinds of samples.

    Attributes:
      traces: `[M]`, means over prompts of the trace of the covariance of a group's gradient.
      squared_norms: `[3]`, sums over samples of the squared norm of the score.
      samples: `[3]`, their numbers.
    """

    traces: jax.Array
    squared_norms: jax.Array
    samples: jax.Array


Measure = Callable[[jax.Array, nnx.State], Measured]
"""Key and parameters to what was measured there."""


def make_measure(config: ConfigDict, graph: nnx.GraphDef, puzzles: Puzzles, draw: Draw) -> Measure:
    """The measurement at the parameters of one seed; one prompt's scores are in memory at a time.

    Args:
      config: The study's.
      graph: The policy's structure.
      puzzles: What prompts are drawn from.
      draw: How completions are drawn.
    """
    N, steps = config.rl.group_size, config.rl.steps
    methods = [method.bind(steps) for method in parse_methods(config.methods, group_size=N)]
    gradient = make_group_gradient(graph, loss_settings(config))

    def advantages(rewards: jax.Array) -> jax.Array:
        """Of the two groups `[2, N]` of a prompt, by each method: `[M, 2, N]`."""
        where = jnp.ones_like(rewards, bool)
        return jnp.stack([method(rewards, jnp.int32(0), where) for method in methods])

    def measure(key: jax.Array, params: nnx.State) -> Measured:
        of_prompts, of_samples = jax.random.split(key)
        shape = (config.variance_prompts,)
        drawn = puzzles.take(jax.random.randint(of_prompts, shape, 0, len(puzzles.sums)))
        completions = draw(params, drawn.prompts, 2 * N, of_samples)
        rewards, is_number = grade(drawn, completions), in_format(completions)

        def of_prompt(args: tuple[Prompts, Completions, jax.Array]) -> tuple[jax.Array, jax.Array]:
            prompt, samples, rewards = args
            scores = _scores(gradient, params, prompt, samples)
            first, second = jnp.moveaxis(advantages(rewards.reshape(2, N)), 1, 0)
            differences = jnp.concatenate([first, -second], axis=-1) @ scores / N
            return jnp.sum(differences**2, axis=-1) / 2, jnp.sum(scores**2, axis=-1)

        traces, squares = jax.lax.map(of_prompt, (drawn.prompts, completions, rewards))
        right = rewards > 0
        kinds = jnp.stack([right, is_number & ~right, ~is_number])
        return Measured(
            jnp.mean(traces, axis=0),
            jnp.sum(jnp.where(kinds, squares, 0.0), axis=(1, 2)),
            jnp.sum(kinds, axis=(1, 2)),
        )

    return measure


def _scores(
    gradient: GroupGradient, params: nnx.State, prompt: Prompts, samples: Completions
) -> jax.Array:
    """Scores `[N, D]` of the samples `[N, T]` of one prompt, by the loss that trains."""
    prompts = jax.tree.map(lambda x: x[None], prompt)
    one, kept = jnp.ones((1, 1)), jnp.ones((1, 1), bool)

    def score(sample: Completions) -> jax.Array:
        completions = jax.tree.map(lambda x: x[None, None], sample)
        # The loss of one sample is minus its advantage times its log-probability.
        group = Batch(prompts, completions, one, kept, kept, advantages=-one)
        return ravel_pytree(gradient(params, group))[0]

    return jax.vmap(score)(samples)


def summarize(row: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """What the seeds say together.

    Args:
      row: Leaves of `Measured`, `[S, ...]`.
      labels: Of the M methods, MaxPO first.

    Returns:
      `methods`, by label `gradient_variance` and `maxpo_ratio`, MaxPO's variance over it; and
      `scores`, by kind of sample `samples`, how many there were, and `squared_norm`, the mean for
      one of them, NaN where there was none. Standard errors over seeds stand beside them with
      `_sem`.
    """
    traces, squares, samples = (np.asarray(row[name], np.float64).T for name in Measured._fields)
    methods = {}
    for label, of_method in zip(labels, traces, strict=True):
        value, error = moments.mean(of_method)
        ratio = moments.ratio(traces[0], of_method)
        methods[label] = {
            "gradient_variance": value,
            "gradient_variance_sem": error,
            "maxpo_ratio": ratio.value,
            "maxpo_ratio_sem": ratio.error,
        }
    scores = {}
    for kind, total, count in zip(KINDS, squares, samples, strict=True):
        norm = moments.ratio(total, count)
        scores[kind] = {
            "samples": int(count.sum()),
            "squared_norm": norm.value,
            "squared_norm_sem": norm.error,
        }
    return {"methods": methods, "scores": scores}
