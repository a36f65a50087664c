"""Shortest paths against networkx, and a policy that follows the solver."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from maxpo.mazes import solver
from maxpo.mazes.maze import MOVES, MazeEnvironment

MAZES = 24
CASES = {
    "perfect": MazeEnvironment(kind="perfect", horizon=60),
    "rooms": MazeEnvironment(kind="rooms", size=12, horizon=60),
    # So short that the best goal is often out of reach.
    "short": MazeEnvironment(kind="perfect", values=(0.25, 0.5, 1.0), horizon=14),
    # A value below zero is better left alone, and nearer goals may be the better ones.
    "unequal": MazeEnvironment(kind="rooms", values=(2.0, -1.0, 1.0), horizon=9),
}


def make(environment, seed=0):
    keys = jax.random.split(jax.random.key(seed), MAZES)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(environment.make_instance))(keys))


def graph_of(walls, ends=()):
    """Floor cells with an edge to each neighbor, and none out of the cells that end an episode."""
    graph = nx.DiGraph()
    for cell in np.argwhere(~walls):
        graph.add_node(tuple(cell))
        for move in MOVES:
            there = tuple(cell + move)
            if not walls[there] and tuple(cell) not in ends:
                graph.add_edge(tuple(cell), there)
    return graph


def places(cells, size):
    return [tuple(divmod(int(cell), size)) for cell in cells]


@pytest.mark.parametrize("name", CASES)
def test_distances_are_those_of_networkx(name):
    mazes = make(CASES[name])
    size = mazes.walls.shape[1]
    distances = jax.jit(jax.vmap(solver.distances))
    free = np.asarray(distances(mazes.walls, mazes.start, np.zeros_like(mazes.ends)))
    stopped = np.asarray(distances(mazes.walls, mazes.start, mazes.ends))
    for i in range(MAZES):
        (start,) = places([mazes.start[i]], size)
        for result, ends in ((free[i], ()), (stopped[i], places(mazes.goals[i], size))):
            expected = np.full((size, size), -1)
            lengths = nx.single_source_shortest_path_length(graph_of(mazes.walls[i], ends), start)
            for place, steps in lengths.items():
                expected[place] = steps
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", CASES)
def test_optimal_return_is_that_of_networkx(name):
    environment = CASES[name]
    mazes = make(environment, seed=1)
    size = mazes.walls.shape[1]
    optimal = np.asarray(jax.jit(jax.vmap(environment.optimal_return))(mazes))
    for i in range(MAZES):
        goals, (start,) = places(mazes.goals[i], size), places([mazes.start[i]], size)
        lengths = nx.single_source_shortest_path_length(graph_of(mazes.walls[i], goals), start)
        reached = [
            float(value)
            for goal, value in zip(goals, mazes.values[i], strict=True)
            if lengths.get(goal, np.inf) <= environment.horizon
        ]
        assert optimal[i] == max([0.0, *reached])
    if name == "short":
        assert len(set(optimal)) > 1  # Else the horizon would not have been tried.


def optimal_actions(maze, horizon):
    """An action for each cell `[H * W]` that leads to the best goal within reach of the start.

    It is one of a shortest path, and of meaning in the cells from which that goal can be reached.
    """
    walls, goals = maze.walls, maze.goals
    steps = solver.distances(walls, maze.start, maze.ends).ravel()[goals]
    reachable = (steps >= 0) & (steps <= horizon)
    best = goals[jnp.argmax(jnp.where(reachable, maze.values, -jnp.inf))]
    left = solver.distances(walls, best, maze.ends)
    # A goal that is in the way ends the episode there.
    blocked = (left < 0) | (maze.ends.reshape(walls.shape) & (left > 0))
    left = jnp.where(blocked, walls.size, left)
    # Around is wall, so that nothing comes in at the other edge.
    towards = jnp.stack([jnp.roll(left, (-down, -right), (0, 1)) for down, right in MOVES])
    return jnp.argmin(towards, axis=0).ravel()


@pytest.mark.parametrize("name", ["perfect", "rooms", "short"])
def test_a_policy_that_follows_the_solver_gets_the_optimal_return(name):
    environment = CASES[name]

    @jax.jit
    @jax.vmap
    def follow(key):
        maze = environment.make_instance(key)
        actions = optimal_actions(maze, environment.horizon)

        def step(state, _):
            _, state, reward, _ = environment.step(maze, state, actions[state.cell])
            return state, reward

        state = environment.reset(maze)[1]
        _, rewards = jax.lax.scan(step, state, length=environment.horizon)
        return jnp.sum(rewards), environment.optimal_return(maze)

    got, optimal = follow(jax.random.split(jax.random.key(2), MAZES))
    np.testing.assert_array_equal(got, optimal)
