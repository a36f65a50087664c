"""The adapter against the library that it wraps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxpo.mazes.environment import rollout

xminigrid = pytest.importorskip("xminigrid")

from maxpo.mazes.xminigrid import XMiniGrid  # noqa: E402

EMPTY = XMiniGrid("MiniGrid-Empty-5x5", horizon=12)


def test_episodes_are_those_of_the_library():
    keys = jax.random.split(jax.random.key(0), 3)
    actions = jax.random.randint(jax.random.key(1), (12, 3, 4), 0, 3)

    def act(key, observations):
        del key
        return jnp.zeros(observations.features.shape[:-1], jnp.int32), observations

    @jax.jit
    def ours(keys):
        instances = jax.vmap(EMPTY.make_instance)(keys)

        def step(states, action):
            step = jax.vmap(jax.vmap(EMPTY.step, in_axes=(None, 0, 0)))
            observations, states, rewards, done = step(instances, states, action)
            return states, (observations, rewards, done)

        states = jax.vmap(EMPTY.reset)(instances)[1]
        states = jax.tree.map(lambda x: jnp.repeat(x[:, None], 4, axis=1), states)
        return jax.lax.scan(step, states, actions)[1]

    observations, rewards, done = jax.tree.map(np.asarray, ours(keys))
    environment, parameters = xminigrid.make("MiniGrid-Empty-5x5", max_steps=12)
    step = jax.jit(lambda timestep, action: environment.step(parameters, timestep, action))
    reset = jax.jit(lambda key: environment.reset(parameters, key))
    ended = 0
    for m in range(3):
        for n in range(4):
            timestep, over = reset(keys[m]), False
            for t in range(12):
                if over:
                    assert rewards[t, m, n] == 0
                    assert done[t, m, n]
                    continue
                timestep = step(timestep, actions[t, m, n])
                over = bool(timestep.last())
                ended += bool(timestep.reward > 0)
                np.testing.assert_allclose(rewards[t, m, n], timestep.reward, rtol=1e-6)
                assert done[t, m, n] == over
                tiles, colors = np.moveaxis(np.asarray(timestep.observation), -1, 0)
                grid = observations.grid[t, m, n]
                np.testing.assert_array_equal(grid[..., :13].argmax(-1), tiles)
                np.testing.assert_array_equal(grid[..., 13:].argmax(-1), colors)
                np.testing.assert_array_equal(grid.sum(-1), np.full(tiles.shape, 2))
    assert ended
    episodes = jax.jit(
        lambda keys: rollout(EMPTY, act, jax.vmap(EMPTY.make_instance)(keys), keys[0], 2)
    )(keys)
    assert episodes.actions.shape == (12, 3, 2)
    assert bool(episodes.mask[0].all())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"expected one of .*MiniGrid-FourRooms.*got 'FourRooms'"):
        XMiniGrid("FourRooms")
    with pytest.raises(ValueError, match="horizon: expected at least 1 step, got 0"):
        XMiniGrid(horizon=0)
    assert EMPTY.optimal_return(None) is None
