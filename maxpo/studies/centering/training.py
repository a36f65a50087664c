"""Training of all seeds, step sizes and estimators of a cell in one compiled call.

All policies of a seed see the same contexts, hidden states and random numbers, so that differences
between estimators are paired. Arrays are `[E, R, S, ...]`: estimator, step size, seed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from maxpo.bandits.hidden_state import HiddenStateBandit, make_hidden_state_bandit
from maxpo.methods import bind_estimator
from maxpo.studies.centering.cells import Cell

__all__ = [
    "B1",
    "SEEDS",
    "Curves",
    "Shape",
    "draw_groups",
    "fold_in",
    "gradients",
    "make_tasks",
    "sample_groups",
    "shape_of",
    "train",
]

# Uses of one seed's key; training folds in the number of the update, from 0.
_TASK, _TEST, _TRAIN = range(3)

B1 = 0.9
"""Adam's decay of first moments."""

SEEDS = HiddenStateBandit(0, None)  # type: ignore[arg-type]
"""Axes of tasks for `jax.vmap`: weights by seed, one threshold."""


class Shape(NamedTuple):
    """What a compiled program of training depends on; all else of a cell is traced."""

    estimators: tuple[str, ...]
    optimizer: str
    gaussian: bool
    hidden_states: int
    num_arms: int
    num_features: int
    group_size: int
    groups_per_update: int
    updates: int
    evaluations: int
    test_contexts: int


class Curves(NamedTuple):
    """How training went, at the start and after each of P equal parts of it.

    Attributes:
      objectives: `[P + 1, E, R, S]`, exact J_k over the test contexts.
      policies: `[P + 1, E, R, S, A, D]`, the weights of the linear softmax policies.
    """

    objectives: jax.Array
    policies: jax.Array


def shape_of(config: ConfigDict, cell: Cell) -> Shape:
    """The shape of a cell's training."""
    return Shape(
        tuple(config.estimators),
        cell.optimizer,
        cell.law == "gaussian",
        cell.hidden_states,
        cell.num_arms,
        cell.num_features,
        cell.group_size,
        cell.groups_per_update,
        config.groups // cell.groups_per_update,
        config.evaluations,
        config.test_contexts,
    )


def make_tasks(shape: Shape, keys: jax.Array, success_rate: jax.Array) -> HiddenStateBandit:
    """One bandit for each seed; leaves `[S, ...]`, and a threshold for all."""

    def weights(key: jax.Array) -> jax.Array:
        return make_hidden_state_bandit(
            jax.random.fold_in(key, _TASK),
            hidden_states=shape.hidden_states,
            num_arms=shape.num_arms,
            num_features=shape.num_features,
            success_rate=None,
        ).weights

    threshold = None if shape.gaussian else -ndtri(success_rate)
    return HiddenStateBandit(jax.vmap(weights)(keys), threshold)


def draw_groups(
    tasks: HiddenStateBandit, keys: jax.Array, count: int, group_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the environment and chance add to `count` groups of each seed.

    Args:
      tasks: From `make_tasks`.
      keys: `[S]`.
      count: G.
      group_size: N.

    Returns:
      Contexts `[S, G, D]`, rewards of all arms `[S, G, A]`, uniform numbers `[S, G, N]`.
    """

    def draw(task: HiddenStateBandit, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        context_key, action_key = jax.random.split(key)
        contexts, rewards = task.draw(context_key, count)
        return contexts, rewards, jax.random.uniform(action_key, (count, group_size))

    return jax.vmap(draw, (SEEDS, 0))(tasks, keys)


def fold_in(keys: jax.Array, *numbers: ArrayLike) -> jax.Array:
    """Keys `[S]` with numbers folded into each, one after the other."""
    for number in numbers:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    return keys


def sample_groups(
    policies: jax.Array, contexts: jax.Array, rewards: jax.Array, uniforms: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws a group for each context by inversion of the distribution function.

    Args:
      policies: `[..., S, A, D]`.
      contexts: `[S, G, D]`.
      rewards: `[S, G, A]` of all arms.
      uniforms: `[S, G, N]`.

    Returns:
      Probabilities `[..., S, G, A]`, actions `[..., S, G, N]` and their rewards.
    """
    probabilities = jax.nn.softmax(jnp.einsum("...sad,sgd->...sga", policies, contexts))
    cumulative = jnp.cumsum(probabilities, axis=-1)
    below = cumulative[..., None] <= uniforms[..., None, :] * cumulative[..., -1:, None]
    actions = jnp.sum(below, axis=-2, dtype=jnp.int32)
    rewards = jnp.broadcast_to(rewards, (*actions.shape[:-1], rewards.shape[-1]))
    return probabilities, actions, jnp.take_along_axis(rewards, actions, axis=-1)


def gradients(probabilities: jax.Array, actions: jax.Array, advantages: jax.Array) -> jax.Array:
    """Of (1/N) sum_i A_i log pi(a_i) by the logits, in closed form: a scatter is slow on a CPU.

        g_a = (1/N) sum_i A_i ([a_i = a] - pi_a)

    Args:
      probabilities: `[..., A]`.
      actions: `[..., N]`.
      advantages: `[..., N]`.

    Returns:
      `[..., A]`.
    """
    n, arms = actions.shape[-1], probabilities.shape[-1]
    hits = actions[..., None] == jnp.arange(arms)
    drawn = jnp.sum(jnp.where(hits, advantages[..., None], 0), axis=-2)
    return (drawn - probabilities * jnp.sum(advantages, axis=-1, keepdims=True)) / n


@partial(jax.jit, static_argnames="shape")
def train(
    shape: Shape,
    keys: jax.Array,
    step_sizes: jax.Array,
    k: jax.Array,
    success_rate: jax.Array,
    b2: jax.Array,
) -> Curves:
    """Trains a cell's policies, from uniform ones.

    Args:
      shape: Static.
      keys: `[S]` PRNG keys.
      step_sizes: `[R]`.
      k: Of the estimators and of the objective.
      success_rate: Not used where rewards are Gaussian.
      b2: Decay of Adam's second moments, not used by others.
    """
    tasks = make_tasks(shape, keys, success_rate)
    draw_tests = jax.vmap(lambda task, key: task.contexts(key, shape.test_contexts), (SEEDS, 0))
    tests = draw_tests(tasks, fold_in(keys, _TEST))
    tables = jax.vmap(HiddenStateBandit.table, (SEEDS, 0))(tasks, tests)
    bound = [bind_estimator(name, lambda k: k) for name in shape.estimators]
    optimizer = _optimizer(shape.optimizer, b2)
    steps = step_sizes[:, None, None, None]

    def objective(policies: jax.Array) -> jax.Array:
        def of_seed(
            task: HiddenStateBandit, policies: jax.Array, contexts: jax.Array, table: jax.Array
        ) -> jax.Array:
            logits = jnp.einsum("erad,cd->erca", policies, contexts)
            return task.expected_max(jax.nn.softmax(logits), table, k)

        over_seeds = jax.vmap(of_seed, (SEEDS, 2, 0, 0), out_axes=2)
        return over_seeds(tasks, policies, tests, tables)

    def update(
        carry: tuple[jax.Array, optax.OptState], number: jax.Array
    ) -> tuple[tuple[jax.Array, optax.OptState], None]:
        policies, state = carry

        drawn = draw_groups(
            tasks, fold_in(keys, _TRAIN, number), shape.groups_per_update, shape.group_size
        )
        contexts = drawn[0]
        probabilities, actions, rewards = sample_groups(policies, *drawn)
        advantages = jnp.stack([function(rewards[e], k) for e, function in enumerate(bound)])
        by_logits = gradients(probabilities, actions, advantages) / shape.groups_per_update
        ascent = jnp.einsum("ersga,sgd->ersad", by_logits, contexts)
        directions, state = optimizer.update(ascent, state)
        return (policies + steps * directions, state), None

    def part(
        carry: tuple[jax.Array, optax.OptState], number: jax.Array
    ) -> tuple[tuple[jax.Array, optax.OptState], Curves]:
        length = shape.updates // shape.evaluations
        carry, _ = jax.lax.scan(update, carry, number * length + jnp.arange(length))
        return carry, Curves(objective(carry[0]), carry[0])

    sizes = (len(bound), step_sizes.size, keys.size, shape.num_arms, shape.num_features)
    start = jnp.zeros(sizes)
    _, curves = jax.lax.scan(part, (start, optimizer.init(start)), jnp.arange(shape.evaluations))
    first = Curves(objective(start), start)
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first, curves)


def _optimizer(name: str, b2: jax.Array) -> optax.GradientTransformation:
    if name == "adam":
        return optax.scale_by_adam(b1=B1, b2=b2)
    return optax.trace(0.9) if name == "momentum" else optax.identity()
