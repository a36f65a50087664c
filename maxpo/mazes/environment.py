"""Episodic tasks as pure functions, and the one loop that runs episodes of any of them.

An environment is a hashable object without arrays. What differs from one problem to the next (a
maze, a layout of doors and keys) is its instance, a pytree, so that `jax.vmap` takes many of them.
A group is N episodes of the same instance from the same start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

__all__ = ["Act", "Environment", "Observation", "Trajectory", "rollout"]


class Observation(NamedTuple):
    """What an agent sees, all float32.

    Attributes:
      grid: `[..., H, W, C]`, planes over a map or a window of it.
      features: `[..., F]`, numbers that belong to no place.
    """

    grid: jax.Array
    features: jax.Array


class Environment(Protocol):
    """What training and evaluation need of an environment.

    An episode ends with `done`, after `horizon` steps at the latest. Steps after the end are
    allowed: they pay 0 and stay done.
    """

    @property
    def num_actions(self) -> int:
        """Actions are 0..num_actions - 1."""

    @property
    def horizon(self) -> int:
        """Largest number of steps of an episode."""

    def make_instance(self, key: jax.Array) -> Any:
        """Draws an instance; the same one for the same key."""

    def reset(self, instance: Any) -> tuple[Observation, Any]:
        """Starts an episode: (observation, state)."""

    def step(
        self, instance: Any, state: Any, action: jax.Array
    ) -> tuple[Observation, Any, jax.Array, jax.Array]:
        """One step: (observation, state, reward, done)."""

    def optimal_return(self, instance: Any) -> jax.Array | None:
        """The largest possible return of an episode, or None if it is not known."""


class Trajectory(NamedTuple):
    """Episodes of M instances, N of each. Time leads, as `lax.scan` stacks it.

    Attributes:
      observations: `[T, M, N, ...]`, what was seen before each action.
      actions: `[T, M, N]`, int32.
      extras: `[T, M, N, ...]`, what `act` returned beside the actions.
      rewards: `[T, M, N]`, 0 after the end.
      mask: `[T, M, N]`, True for the steps of the episode, the one that ends it included.
    """

    observations: Observation
    actions: jax.Array
    extras: Any
    rewards: jax.Array
    mask: jax.Array

    @property
    def returns(self) -> jax.Array:
        """Sums of rewards `[M, N]`."""
        return jnp.sum(self.rewards, axis=0)


Act = Callable[[jax.Array, Observation], tuple[jax.Array, Any]]


def rollout(
    environment: Environment, act: Act, instances: Any, key: jax.Array, group_size: int
) -> Trajectory:
    """Runs a group of episodes of each instance, all in step, under `lax.scan`.

    Under `jit`, what the caller does not use of the result is not stored.

    Args:
      environment: Static.
      act: (key, observations `[M, N, ...]`) -> (actions `[M, N]`, extras), for all episodes at
        once. The key is a new one in each step.
      instances: A pytree whose leaves lead with `[M]`.
      key: PRNG key.
      group_size: N.

    Returns:
      A trajectory of T = `environment.horizon` steps.
    """

    def in_groups(values: Any) -> Any:
        def repeat(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x[:, None], (x.shape[0], group_size, *x.shape[1:]))

        return jax.tree.map(repeat, values)

    # Episodes of a group share their instance instead of copying it.
    step = jax.vmap(jax.vmap(environment.step, in_axes=(None, 0, 0)))

    def advance(carry: tuple, step_key: jax.Array) -> tuple[tuple, Trajectory]:
        observations, states, alive = carry
        actions, extras = act(step_key, observations)
        following, states, rewards, done = step(instances, states, actions)
        row = Trajectory(observations, actions, extras, jnp.where(alive, rewards, 0), alive)
        return (following, states, alive & ~done), row

    observations, states = in_groups(jax.vmap(environment.reset)(instances))
    alive = jnp.ones((jax.tree.leaves(states)[0].shape[0], group_size), bool)
    keys = jax.random.split(key, environment.horizon)
    return jax.lax.scan(advance, (observations, states, alive), keys)[1]
