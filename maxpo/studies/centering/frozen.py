"""Adam on a policy that stands still: what it makes of each estimator's gradients, by coordinate.

Training mixes what an optimizer does with where it leads. Here gradients of one policy go through
Adam's moments for many updates without a step being taken, so that the mean direction E[u_j] of
every coordinate can be compared with the formula of `maxpo.studies.centering.prediction`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from maxpo.studies.centering import comparison
from maxpo.studies.centering.cells import Cell, step_sizes
from maxpo.studies.centering.moments import ascents, expected_directions, measure
from maxpo.studies.centering.prediction import own_share, squares_of
from maxpo.studies.centering.training import B1, Shape, fold_in, make_tasks, shape_of, train
from maxpo.studies.jobs import Row
from maxpo.studies.variance.gradient_variance import PAIR

__all__ = ["coordinates", "mean_directions"]

_STREAM = 6  # A use of a seed's key, after those of training and of the moments.


@partial(jax.jit, static_argnames=("shape", "names", "updates"))
def mean_directions(
    shape: Shape,
    names: tuple[str, ...],
    updates: int,
    keys: jax.Array,
    policies: jax.Array,
    k: jax.Array,
    success_rate: jax.Array,
    b2: jax.Array,
) -> jax.Array:
    """Adam's mean direction at frozen policies, of estimators that see the same groups.

    The first tenth of the updates fills the moments and is not counted.

    Args:
      shape: Of the training that the policies come from. Static.
      names: The E estimators. Static.
      updates: How many. Static.
      keys: `[S]` keys of the seeds, as training had them.
      policies: `[S, A, D]`.
      k: Of the estimators.
      success_rate: As in training.
      b2: Decay of Adam's second moments.

    Returns:
      `[E, S, A, D]`.
    """
    tasks = make_tasks(shape, keys, success_rate)
    optimizer = optax.scale_by_adam(b1=B1, b2=b2)

    def update(
        carry: tuple[jax.Array, optax.OptState], number: jax.Array
    ) -> tuple[tuple[jax.Array, optax.OptState], None]:
        total, state = carry
        ascent = ascents(shape, names, tasks, fold_in(keys, _STREAM, number), policies, k)
        direction, state = optimizer.update(ascent, state)
        return (total + jnp.where(number < updates // 10, 0, direction), state), None

    start = jnp.zeros((len(names), *policies.shape))
    (total, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), jnp.arange(updates))
    return total / (updates - updates // 10)


def coordinates(key: jax.Array, *, config: ConfigDict, cell: Cell) -> list[Row]:
    """A job: noise and mean direction by coordinate, halfway through training by MaxPO.

    Returns:
      For each b2 of the config a row with, for either estimator, the predicted and the measured
      direction and the noise sigma_j of some coordinates, and by all of them the correlation of the
      two, and the ratio of samples that follows: predicted, and from the measured directions; NaN
      where no sample is ever right.
    """
    frozen = config.frozen
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    shape, sizes = shape_of(config, cell), step_sizes(config, cell)
    k, rate = jnp.float32(cell.k), jnp.float32(cell.success_rate)
    curves = train(shape, keys, jnp.asarray(sizes), k, rate, jnp.float32(cell.b2))
    chosen, _ = comparison.halves(config.seeds)
    number = shape.estimators.index("maxpo")
    finals = np.asarray(curves.objectives[-1, number], np.float64)
    best = comparison.best_step(finals[:, chosen])
    seeds = slice(0, frozen.seeds)
    policies = curves.policies[config.evaluations // 2, number, best, seeds]

    args = (keys[seeds], policies[None], k, rate)
    moments = measure(shape, PAIR, frozen.groups, *args)
    squares = squares_of(moments, shape.groups_per_update)
    mean = jnp.mean(moments.means[:, 0], axis=0)
    noise = jnp.sqrt(jnp.maximum(moments.second[:, 0] - mean**2, 0))
    shown = jax.random.choice(key, mean.size, (frozen.shown,), replace=False)
    rows = []
    for b2 in frozen.b2:
        share = jnp.float32(own_share(b2))
        predicted = expected_directions(shape, PAIR, frozen.updates, *args, squares, share)[:, 0]
        measured = mean_directions(
            shape, PAIR, frozen.updates, keys[seeds], policies, k, rate, jnp.float32(b2)
        )
        row: Row = {"section": "frozen", "b2": b2}
        for number, name in enumerate(PAIR):
            pair = jnp.stack([predicted[number].ravel(), measured[number].ravel()])
            row[name] = {
                "correlation": float(jnp.corrcoef(pair)[0, 1]),
                "noise": np.asarray(noise[number].ravel()[shown]),
                "predicted": np.asarray(pair[0, shown]),
                "measured": np.asarray(pair[1, shown]),
            }
        for label, directions in (("predicted", predicted), ("measured", measured)):
            reference, maxpo = (float(jnp.sum(mean * each)) for each in directions)
            # Without any success there is no direction, and 0 on either side.
            row[f"samples_ratio_{label}"] = (reference / maxpo) ** 2 if maxpo else np.nan
        rows.append(row)
    return rows
