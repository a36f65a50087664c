"""How many environment steps a second a uniform random policy makes.

Calls of different environments are taken in turns, so that a slow moment of the machine meets all
of them, and compared as medians. Only steps of episodes that are still running count.

Our mazes are drawn before the clock starts, and drawing them has a figure of its own. The library's
layouts are drawn in each timed call: its steps are several times as fast where the compiler sees
the reset, and of such a call the resets are a small part.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.mazes.environment import Environment, Observation, rollout
from maxpo.mazes.maze import MazeEnvironment
from maxpo.mazes.xminigrid import XMiniGrid
from maxpo.studies.speed.turns import turns

__all__ = ["Timing", "check_config", "make_environments", "measure", "table"]


class Timing(NamedTuple):
    """One environment's throughput, in millions a second.

    Attributes:
      name: The row's name.
      steps: Steps where nobody looks at observations.
      steps_and_views: Steps where every number of every observation is read.
      starts: Instances drawn, with an episode begun in each.
    """

    name: str
    steps: float
    steps_and_views: float
    starts: float


class _OwnView(XMiniGrid):
    """Shows what the library shows, so that our encoding of it takes no time."""

    def observe(self, state: Any) -> Observation:
        return Observation(state.timestep.observation, state.last_action[None])


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number makes no sense."""
    least = {"instances": 1, "group_size": 1, "repeats": 1, "radius": 1, "seed": 0}
    runs.check_numbers(config, at_least=least)


def make_environments(config: ConfigDict) -> dict[str, Environment]:
    """The environments of the config, by name of their row.

    Those of XLand-MiniGrid come in the size of our mazes with as large a window, and in their own.

    Raises:
      ValueError: If a parameter makes no sense.
      MissingExtraError: If xminigrid is missing, naming the extra.
    """
    size, window = config.size, 2 * config.radius + 1
    environments: dict[str, Environment] = {}
    for kind in ("perfect", "rooms"):
        environments[f"maze {kind} {size} x {size}"] = MazeEnvironment(
            size=size, kind=kind, horizon=config.horizon, radius=config.radius
        )
    for name in config.xminigrid:
        environments |= {
            f"xminigrid {name} {size} x {size}": _OwnView(name, config.horizon, size, window),
            f"xminigrid {name}": _OwnView(name, config.horizon),
        }
    return environments


def measure(config: ConfigDict, environments: dict[str, Environment]) -> list[Timing]:
    """Times all of them, in turns."""
    run = jax.jit(_random_episodes, static_argnums=(0, 1, 2))
    start = jax.jit(_start, static_argnums=(0, 1))
    keys = jax.random.split(jax.random.key(config.seed), config.instances)
    key = jax.random.key(0)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, environment in environments.items():
        instances = jax.block_until_ready(jax.jit(jax.vmap(environment.make_instance))(keys))
        for figure, looks in (("steps", False), ("steps_and_views", True)):
            calls[name, figure] = functools.partial(
                run, environment, config.group_size, looks, instances, key
            )
        calls[name, "starts"] = functools.partial(start, environment, config.instances, key)

    rates: dict[tuple[str, str], list[float]] = {call: [] for call in calls}
    for call, seconds, (count, _) in turns(calls, config.repeats):
        rates[call].append(float(count) / seconds / 1e6)
    return [
        Timing(name, *(float(np.median(rates[name, figure])) for figure in Timing._fields[1:]))
        for name in environments
    ]


def table(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Rows by name: millions of steps and thousands of starts a second."""
    return {
        timing.name: {
            "M steps/s": timing.steps,
            "M steps/s, views read": timing.steps_and_views,
            "k starts/s": 1e3 * timing.starts,
        }
        for timing in timings
    }


def _random_episodes(
    environment: Environment, group_size: int, looks: bool, instances: Any, key: jax.Array
) -> tuple[jax.Array, Any]:
    """The number of steps made, and what keeps the compiler from leaving anything out."""

    def act(key: jax.Array, observation: Observation) -> tuple[jax.Array, jax.Array]:
        shape = observation.features.shape[:-1]
        read = [jnp.sum(x, dtype=jnp.float32) for x in observation] if looks else []
        actions = jax.random.randint(key, shape, 0, environment.num_actions)
        return actions, sum(read, jnp.zeros(()))

    episodes = rollout(environment, act, instances, key, group_size)
    return jnp.sum(episodes.mask), (jnp.mean(episodes.returns), jnp.sum(episodes.extras))


def _start(environment: Environment, count: int, key: jax.Array) -> tuple[jax.Array, Any]:
    """The number of episodes begun, and all that was made for them."""
    instances = jax.vmap(environment.make_instance)(jax.random.split(key, count))
    return jnp.int32(count), (instances, jax.vmap(environment.reset)(instances))
