"""Environments of XLand-MiniGrid, in the shape that our experiments take."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxpo._extras import missing_extra
from maxpo.mazes.environment import Observation

__all__ = ["XMiniGrid", "XMiniGridState"]


class XMiniGridState(NamedTuple):
    """Where an episode is.

    Attributes:
      timestep: The library's own.
      last_action: int32, -1 before the first.
      done: boolean.
    """

    timestep: Any
    last_action: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class XMiniGrid:
    """One of XLand-MiniGrid's environments. Needs `pip install 'maxpo[maze]'`.

    An instance is a key, from which the library draws the same layout at each reset; a group is N
    episodes in that layout. The agent sees tiles and colors in front of it, one-hot, and its last
    action. Success at step t pays `1 - 0.9 t / horizon`, so returns are graded; the best possible
    one is not known.

    See "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX"
    (https://arxiv.org/abs/2312.12044).

    Attributes:
      environment: A name in the library's registry, such as "MiniGrid-FourRooms".
      horizon: Largest number of steps.
      size: Side of the grid, or 0 for the environment's own.
      view_size: Side of the square that the agent sees, odd, or 0 for the environment's own.

    Raises:
      MissingExtraError: If the package is missing.
      ValueError: If there is no such environment, or a number makes no sense.
    """

    environment: str = "MiniGrid-FourRooms"
    horizon: int = 60
    size: int = 0
    view_size: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1 step, got {self.horizon}")
        if self.size != 0 and self.size < 5:
            raise ValueError(f"size: expected at least 5, or 0, got {self.size}")
        if self.view_size != 0 and (self.view_size < 3 or self.view_size % 2 == 0):
            raise ValueError(
                f"view_size: expected an odd one of at least 3, or 0, got {self.view_size}"
            )
        _make(self)

    @property
    def num_actions(self) -> int:
        """Forward, turn right and left, pick up, put down and toggle."""
        environment, parameters = _make(self)
        return environment.num_actions(parameters)

    def make_instance(self, key: jax.Array) -> jax.Array:
        """The key of a layout."""
        # Not the layout: the library writes the kind of goal into it, a constant that the compiler
        # only sees where it sees the reset. Else each step evaluates every kind, at six times the
        # time.
        return key

    def reset(self, instance: jax.Array) -> tuple[Observation, XMiniGridState]:
        """Starts an episode."""
        environment, parameters = _make(self)
        timestep = environment.reset(parameters, instance)
        state = XMiniGridState(timestep, jnp.full((), -1, jnp.int32), jnp.zeros((), bool))
        return self.observe(state), state

    def step(
        self, instance: jax.Array, state: XMiniGridState, action: jax.Array
    ) -> tuple[Observation, XMiniGridState, jax.Array, jax.Array]:
        """One step: (observation, state, reward, done). Behind the end nothing pays."""
        del instance  # The state holds all of the layout, which doors and keys may change.
        environment, parameters = _make(self)
        timestep = environment.step(parameters, state.timestep, action)
        reward = jnp.where(state.done, 0, timestep.reward)
        # The library's own flag is that of a single step.
        done = state.done | timestep.last()
        state = XMiniGridState(timestep, jnp.asarray(action, jnp.int32), done)
        return self.observe(state), state, reward, done

    def observe(self, state: XMiniGridState) -> Observation:
        """What an agent sees.

        Returns:
          Grid `[V, V, 25]`, 13 planes of tiles and 12 of colors, the agent at the middle of the
          last row looking up; features `[6]`, the last action one-hot, all 0 before the first.
        """
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES

        tiles, colors = state.timestep.observation[..., 0], state.timestep.observation[..., 1]
        planes = (jax.nn.one_hot(tiles, NUM_TILES), jax.nn.one_hot(colors, NUM_COLORS))
        return Observation(
            jnp.concatenate(planes, axis=-1), jax.nn.one_hot(state.last_action, self.num_actions)
        )

    def optimal_return(self, instance: jax.Array) -> None:
        """Not known."""
        del instance


@functools.cache
def _make(wanted: XMiniGrid) -> tuple[Any, Any]:
    """The library's environment and its parameters."""
    try:
        import xminigrid
    except ImportError as error:
        raise missing_extra(f"{wanted.environment}", "xminigrid", "maze", error) from error
    known = xminigrid.registered_environments()
    if wanted.environment not in known:
        raise ValueError(
            f"environment: expected one of {', '.join(known)}; got {wanted.environment!r}"
        )
    options = {"max_steps": wanted.horizon}
    if wanted.size:
        options |= {"height": wanted.size, "width": wanted.size}
    if wanted.view_size:
        options["view_size"] = wanted.view_size
    return xminigrid.make(wanted.environment, **options)
