"""How many environment steps a second a uniform random policy makes.

Times of different environments are taken in turns, so that a slow moment of the machine meets all
of them, and compared as medians. Only steps of episodes that are still running count.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maxpo.tasks.environment import Environment, Observation, rollout


class Timing(NamedTuple):
    """One environment's throughput.

    Attributes:
      name: Of the row.
      moves: Millions of steps a second where nobody looks at observations.
      moves_and_views: The same where every number of every observation is read.
    """

    name: str
    moves: float
    moves_and_views: float


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number makes no sense."""
    for field in ("instances", "group_size", "repeats"):
        if config[field] < 1:
            raise ValueError(f"{field}: expected at least 1, got {config[field]}.")


def make_environments(config: ConfigDict) -> dict[str, Environment]:
    """The environments of the config, by name of their row.

    Raises:
      ValueError: If a parameter makes no sense.
      ImportError: If xminigrid is missing, naming the extra.
    """
    from maxpo.tasks.maze import MazeEnvironment

    environments: dict[str, Environment] = {
        f"maze {kind} {config.size} x {config.size}": MazeEnvironment(
            size=config.size, kind=kind, horizon=config.horizon
        )
        for kind in ("perfect", "rooms")
    }
    if config.xminigrid:
        from maxpo.tasks.xminigrid import XMiniGrid

        environments |= {
            f"xminigrid {name}": XMiniGrid(name, config.horizon) for name in config.xminigrid
        }
    return environments


def measure(config: ConfigDict, environments: dict[str, Environment]) -> list[Timing]:
    """Times all of them, in turns."""
    calls: dict[tuple[str, bool], Any] = {}
    for name, environment in environments.items():
        keys = jax.random.split(jax.random.key(config.seed), config.instances)
        instances = jax.block_until_ready(jax.jit(jax.vmap(environment.make_instance))(keys))
        for looks in (False, True):
            run = jax.jit(_random_episodes, static_argnums=(0, 3, 4))
            calls[name, looks] = (run, environment, instances, looks)
    rates: dict[tuple[str, bool], list[float]] = {call: [] for call in calls}
    for repeat in range(config.repeats + 1):
        for call, (run, environment, instances, looks) in calls.items():
            key = jax.random.key(repeat)
            began = time.perf_counter()
            steps, _ = jax.block_until_ready(
                run(environment, instances, key, config.group_size, looks)
            )
            if repeat:  # The first call compiles.
                rates[call].append(float(steps) / (time.perf_counter() - began) / 1e6)
    return [
        Timing(name, *(float(np.median(rates[name, looks])) for looks in (False, True)))
        for name in environments
    ]


def table(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Rows of millions of steps a second."""
    return {
        timing.name: {
            "M steps/s": timing.moves,
            "M steps/s, views read": timing.moves_and_views,
        }
        for timing in timings
    }


def _random_episodes(
    environment: Environment, instances: Any, key: jax.Array, group_size: int, looks: bool
) -> tuple[jax.Array, Any]:
    """The number of steps made, and what keeps the compiler from leaving anything out."""

    def act(key: jax.Array, observation: Observation) -> tuple[jax.Array, jax.Array]:
        shape = observation.features.shape[:-1]
        read = sum(jnp.sum(x) for x in observation) if looks else jnp.zeros(())
        return jax.random.randint(key, shape, 0, environment.num_actions), jnp.asarray(read)

    episodes = rollout(environment, act, instances, key, group_size)
    return jnp.sum(episodes.mask), (jnp.mean(episodes.returns), jnp.sum(episodes.extras))
