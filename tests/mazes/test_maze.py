"""Mazes: what they are made of, and what episodes in them do."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from maxpo.mazes.environment import rollout
from maxpo.mazes.maze import MOVES, MazeEnvironment

PERFECT = MazeEnvironment(size=11, horizon=40)
ROOMS = MazeEnvironment(size=11, kind="rooms", horizon=40)
FULL = MazeEnvironment(size=7, view="full", values=(1.0,), horizon=12)


def make(environment, count=32, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(environment.make_instance))(keys)


def floor_graph(walls):
    floor = {tuple(cell) for cell in np.argwhere(~walls)}
    graph = nx.Graph()
    graph.add_nodes_from(floor)
    for cell in floor:
        for move in MOVES:
            there = (cell[0] + int(move[0]), cell[1] + int(move[1]))
            if there in floor:
                graph.add_edge(cell, there)
    return graph


def uniform(key, observations):
    return jax.random.randint(key, observations.features.shape[:-1], 0, 4), None


@pytest.mark.parametrize("environment", [PERFECT, ROOMS, FULL, MazeEnvironment(size=15)])
def test_all_floor_is_connected_inside_a_ring_of_walls(environment):
    for walls in np.asarray(make(environment).walls):
        assert walls[[0, -1]].all()
        assert walls[:, [0, -1]].all()
        assert nx.is_connected(floor_graph(walls))
        assert (~walls).sum() == environment.floor_cells


def test_a_perfect_maze_is_a_spanning_tree_of_its_cells():
    mazes = np.asarray(make(PERFECT).walls)
    for walls in mazes:
        assert not walls[1::2, 1::2].any()
        assert walls[2:-1:2, 2:-1:2].all()
        assert nx.is_tree(floor_graph(walls))
    assert len({walls.tobytes() for walls in mazes}) == len(mazes)
    # Any passage is open in some mazes and closed in others.
    share = mazes.mean(axis=0)[1:-1, 1:-1]
    passages = np.add.outer(np.arange(9), np.arange(9)) % 2 == 1
    assert ((share > 0) & (share < 1))[passages].all()


def test_goals_are_where_they_were_meant_to_be():
    for environment in (PERFECT, ROOMS):
        mazes = jax.tree.map(np.asarray, make(environment))
        ratios = []
        for i in range(len(mazes.start)):
            walls = mazes.walls[i]
            places = [divmod(int(c), 11) for c in (mazes.start[i], *mazes.goals[i])]
            assert len(set(places)) == 4
            assert not any(walls[place] for place in places)
            lengths = nx.single_source_shortest_path_length(floor_graph(walls), places[0])
            steps = np.array([lengths[place] for place in places[1:]])
            assert steps[-1] == max(lengths.values())
            ratios.append(steps / steps[-1])
            # Nothing better is behind something worse.
            open_graph = floor_graph(walls)
            open_graph.remove_nodes_from(places[1:3])
            assert nx.shortest_path_length(open_graph, places[0], places[3]) == steps[-1]
        np.testing.assert_allclose(np.mean(ratios, axis=0), [1 / 3, 2 / 3, 1], atol=0.06)


def test_a_goal_stands_in_the_way_only_where_there_is_no_other_place():
    """A 5 x 5 maze is one corridor of 7 cells: from its end every goal is on the way."""
    environment = MazeEnvironment(size=5, values=(0.5, 1.0), horizon=20)
    mazes = make(environment, count=64)
    optimal = np.asarray(jax.vmap(environment.optimal_return)(mazes))
    assert set(optimal) == {0.5, 1.0}


def test_the_same_key_gives_the_same_maze_however_it_is_drawn():
    keys = jax.random.split(jax.random.key(3), 4)
    together = jax.jit(jax.vmap(PERFECT.make_instance))(keys)
    alone = [jax.jit(PERFECT.make_instance)(key) for key in keys]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        together,
        jax.tree.map(lambda *leaves: np.stack(leaves), *alone),
    )
    small = MazeEnvironment(size=5, values=(1.0,))
    eager, compiled = small.make_instance(keys[0]), jax.jit(small.make_instance)(keys[0])
    jax.tree.map(np.testing.assert_array_equal, eager, compiled)


def test_the_maze_of_a_key_stays_what_it_was():
    """Drawn by integers alone, so this holds on every backend; a reader can check it is a maze."""
    maze = jax.jit(PERFECT.make_instance)(jax.random.key(0))
    rows = ["".join("#" if wall else " " for wall in row) for row in np.asarray(maze.walls)]
    assert rows == GOLDEN


def test_walls_stop_and_floor_lets_pass():
    maze = jax.tree.map(lambda x: np.asarray(x[0]), make(PERFECT))
    for cell in np.flatnonzero(~maze.walls.ravel()):
        row, column = divmod(int(cell), 11)
        for action, (down, right) in enumerate(MOVES):
            blocked = maze.walls[row + down, column + right]
            expected = cell if blocked else (row + down) * 11 + column + right
            assert maze.following[cell, action] == expected


@pytest.mark.parametrize("environment", [PERFECT, ROOMS])
def test_episodes_end_at_the_first_goal_and_are_paid_once(environment):
    mazes = make(environment, count=16)
    episodes = jax.jit(lambda mazes, key: rollout(environment, uniform, mazes, key, 64))(
        mazes, jax.random.key(1)
    )
    actions, rewards, mask = (
        np.asarray(x) for x in (episodes.actions, episodes.rewards, episodes.mask)
    )
    walls, payoff = np.asarray(mazes.walls), np.asarray(mazes.payoff)
    reached = 0
    for m in range(16):
        for n in range(64):
            cell, alive = int(mazes.start[m]), True
            for t in range(environment.horizon):
                assert mask[t, m, n] == alive
                row, column = divmod(cell, 11)
                there = MOVES[actions[t, m, n]] + (row, column)
                if alive and not walls[m][tuple(there)]:
                    cell = int(there @ (11, 1))
                paid = payoff[m, cell] if alive else 0
                assert rewards[t, m, n] == paid
                if alive and paid > 0:
                    reached += 1
                    alive = False
    assert 0 < reached < 16 * 64
    np.testing.assert_array_equal(episodes.returns, rewards.sum(axis=0))


def test_an_episode_of_the_environment_is_done_at_the_goal_or_the_horizon():
    maze = jax.jit(FULL.make_instance)(jax.random.key(0))
    _, state = FULL.reset(maze)
    step_of = jax.jit(FULL.step)
    wall = int(np.argmax(np.asarray(maze.following[maze.start]) == int(maze.start)))
    for time in range(1, FULL.horizon + 2):
        _, state, reward, done = step_of(maze, state, jnp.int32(wall))
        assert bool(done) == (time >= FULL.horizon)
        assert reward == 0
        assert state.cell == maze.start


def test_the_local_view_is_a_window_of_the_maze():
    maze = jax.tree.map(lambda x: x[0], make(PERFECT))
    walls = np.pad(np.asarray(maze.walls, np.float32), 2, constant_values=1)
    values = np.pad(np.asarray(maze.payoff).reshape(11, 11), 2)
    (grid, features), state = PERFECT.reset(maze)
    assert grid.shape == (5, 5, 2)
    np.testing.assert_array_equal(features, np.zeros(4))
    step_of = jax.jit(PERFECT.step)
    for action in (0, 1, 1, 2, 3, 0, 2, 2):
        (grid, features), state, _, _ = step_of(maze, state, jnp.int32(action))
        row, column = divmod(int(state.cell), 11)
        np.testing.assert_array_equal(grid[..., 0], walls[row : row + 5, column : column + 5])
        np.testing.assert_array_equal(grid[..., 1], values[row : row + 5, column : column + 5])
        np.testing.assert_array_equal(features, np.eye(4)[action])


def test_the_full_view_shows_walls_goals_and_place():
    maze = jax.jit(FULL.make_instance)(jax.random.key(1))
    (grid, _), state = FULL.reset(maze)
    assert grid.shape == (7, 7, 3)
    np.testing.assert_array_equal(grid[..., 0], np.asarray(maze.walls, np.float32))
    np.testing.assert_array_equal(grid[..., 1].ravel(), maze.payoff)
    assert np.flatnonzero(grid[..., 2]) == [int(state.cell)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size: expected at least 3, got 1"),
        ({"size": 12}, "size: expected an odd one for a perfect maze, got 12"),
        ({"size": 5, "kind": "rooms"}, "size: expected at least 7, got 5"),
        ({"size": 3}, "fewer goals than the 1 cells of floor.*got 3; no goal could be reached"),
        ({"horizon": 0}, "horizon: expected at least 1 step, got 0"),
        ({"radius": 0}, "radius: expected at least 1, got 0"),
        ({"kind": "open"}, "kind: expected one of perfect, rooms; got 'open'"),
        ({"view": "all"}, "view: expected one of local, full; got 'all'"),
        ({"values": ()}, "values: expected finite ones of 1 or more goals"),
        ({"values": (1.0, float("nan"))}, "values: expected finite ones"),
    ],
)
def test_a_maze_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MazeEnvironment(**options)


GOLDEN = [
    "###########",
    "# #       #",
    "# # ### ###",
    "#     #   #",
    "# # ##### #",
    "# #   # # #",
    "# # ### # #",
    "# # #   # #",
    "# ### ### #",
    "#       # #",
    "###########",
]
