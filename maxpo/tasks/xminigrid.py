"""Environments of XLand-MiniGrid, in the shape that our experiments take."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxpo.tasks.environment import Observation


class XMiniGridState(NamedTuple):
    """Where an episode is.

    Attributes:
      timestep: The library's own.
      last_action: int32, -1 before the first.
    """

    timestep: Any
    last_action: jax.Array


@dataclasses.dataclass(frozen=True)
class XMiniGrid:
    """One of XLand-MiniGrid's environments. Needs `pip install 'maxpo[maze]'`.

    An instance is a layout as the library draws it from a key; a group is N episodes of the same.
    The agent sees tiles and colours in front of it, one-hot, and its last action. Success at step t
    pays `1 - 0.9 t / horizon`, so returns are graded; the best possible one is not known.

    See "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX"
    (https://arxiv.org/abs/2312.12044).

    Attributes:
      environment: A name in the library's registry, such as "MiniGrid-FourRooms".
      horizon: Largest number of steps.

    Raises:
      ImportError: If the package is missing.
      ValueError: If there is no such environment, or no step.
    """

    environment: str = "MiniGrid-FourRooms"
    horizon: int = 60

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1 step, got {self.horizon}.")
        _make(self.environment, self.horizon)

    @property
    def num_actions(self) -> int:
        """Forward, turn right and left, pick up, put down and toggle."""
        environment, parameters = _make(self.environment, self.horizon)
        return environment.num_actions(parameters)

    def make_instance(self, key: jax.Array) -> Any:
        """Draws a layout, as the library's first time step."""
        environment, parameters = _make(self.environment, self.horizon)
        return environment.reset(parameters, key)

    def reset(self, instance: Any) -> tuple[Observation, XMiniGridState]:
        """Starts an episode."""
        state = XMiniGridState(instance, jnp.full((), -1, jnp.int32))
        return self._observe(state), state

    def step(
        self, instance: Any, state: XMiniGridState, action: jax.Array
    ) -> tuple[Observation, XMiniGridState, jax.Array, jax.Array]:
        """One step: (observation, state, reward, done). Behind the end nothing moves or pays."""
        del instance  # The state holds all of the layout, which doors and keys may change.
        environment, parameters = _make(self.environment, self.horizon)
        over = state.timestep.last()
        timestep = jax.tree.map(
            lambda old, new: jnp.where(over, old, new),
            state.timestep,
            environment.step(parameters, state.timestep, action),
        )
        reward = jnp.where(over, 0, timestep.reward)
        state = XMiniGridState(timestep, jnp.asarray(action, jnp.int32))
        return self._observe(state), state, reward, timestep.last()

    def optimal_return(self, instance: Any) -> None:
        """Not known."""
        del instance

    def _observe(self, state: XMiniGridState) -> Observation:
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES

        tiles, colours = state.timestep.observation[..., 0], state.timestep.observation[..., 1]
        planes = (jax.nn.one_hot(tiles, NUM_TILES), jax.nn.one_hot(colours, NUM_COLORS))
        return Observation(
            jnp.concatenate(planes, axis=-1), jax.nn.one_hot(state.last_action, self.num_actions)
        )


@functools.cache
def _make(name: str, horizon: int) -> tuple[Any, Any]:
    """The library's environment and its parameters."""
    try:
        import xminigrid
    except ImportError as error:
        raise ImportError(
            "environments of XLand-MiniGrid need the package xminigrid: pip install 'maxpo[maze]'"
        ) from error
    known = xminigrid.registered_environments()
    if name not in known:
        raise ValueError(f"environment: expected one of {', '.join(known)}; got {name!r}.")
    return xminigrid.make(name, max_steps=horizon)
