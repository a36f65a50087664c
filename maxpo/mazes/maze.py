"""Mazes with several goals, of which the best is far away: a sparse reward that must be explored.

Everything is drawn on the device from a key, by integers and comparisons alone, so a key gives the
same maze on every backend. What a step needs is laid out in tables when the maze is drawn: moving
is one look-up, seeing another.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from maxpo.mazes import solver
from maxpo.mazes.environment import Observation

__all__ = ["ACTIONS", "MOVES", "Kind", "Maze", "MazeEnvironment", "MazeState", "View"]

Kind = Literal["perfect", "rooms"]
View = Literal["local", "full"]

ACTIONS = ("up", "right", "down", "left")
MOVES = np.array(solver.MOVES)


class Maze(NamedTuple):
    """One maze of side S. Cells are numbered row by row, `row * S + column`.

    Attributes:
      walls: `[S, S]` boolean; the outer ring is wall.
      start: `[]` int32, the cell in which episodes start.
      goals: `[G]` int32, cells, in the order of `values`.
      values: `[G]` float32, what reaching a goal pays.
      following: `[S * S, 4]` int32, the cell that each action leads to.
      payoff: `[S * S]` float32, the value of the goal in a cell, 0 elsewhere.
      ends: `[S * S]` boolean, True where a goal is.
      views: `[S * S, W, W, 2]` float32 with the local view of every cell, or `[S, S, 2]` with the
        whole maze: a plane of walls and one of goals' values.
    """

    walls: jax.Array
    start: jax.Array
    goals: jax.Array
    values: jax.Array
    following: jax.Array
    payoff: jax.Array
    ends: jax.Array
    views: jax.Array


class MazeState(NamedTuple):
    """Where an episode is.

    Attributes:
      cell: int32.
      last_action: int32, -1 before the first.
      time: int32, steps that are done.
      done: boolean.
    """

    cell: jax.Array
    last_action: jax.Array
    time: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class MazeEnvironment:
    """Mazes in which an episode ends at the first goal it reaches, and is paid that goal's value.

    Walking into a wall stays in place and costs a step. There is no discount: what keeps the best
    goal from being found is that it is far and that nearer ones end the episode.

    Goals are placed by distance. The last and best is in the cell farthest from the start; goal j
    of G as near as can be to j / G of that distance, off the shortest paths to better ones wherever
    the maze has such a cell (a short corridor may have none, and then a goal blocks the way; the
    optimal return takes account of that).

    Attributes:
      size: S, side of the maze with its outer wall, at least 3. Perfect mazes have an odd one: 11
        makes 5 x 5 cells with walls between them.
      kind: "perfect" has one way between any two cells (a minimum spanning tree under random
        weights); "rooms" four rooms with a door between neighbors.
      values: Values of the goals, in ascending order of their distance from the start.
      horizon: Largest number of steps.
      view: "local" sees the cells up to `radius` away, and nothing else; "full" the whole maze and
        its own place. Both see their last action, so that even without memory one can keep going.
      radius: Cells that the local view reaches to each side.

    Raises:
      ValueError: If a parameter makes no maze, naming it.
    """

    size: int = 11
    kind: Kind = "perfect"
    values: tuple[float, ...] = (0.25, 0.5, 1.0)
    horizon: int = 60
    view: View = "local"
    radius: int = 2

    def __post_init__(self) -> None:
        for name, known in (("kind", get_args(Kind)), ("view", get_args(View))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        least = 7 if self.kind == "rooms" else 3
        if self.size < least:
            raise ValueError(f"size: expected at least {least}, got {self.size}")
        if self.kind == "perfect" and self.size % 2 == 0:
            raise ValueError(f"size: expected an odd one for a perfect maze, got {self.size}")
        if self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1 step, got {self.horizon}")
        if self.radius < 1:
            raise ValueError(f"radius: expected at least 1, got {self.radius}")
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"values: expected finite ones of 1 or more goals, got {self.values}")
        if len(self.values) >= self.floor_cells:
            raise ValueError(
                f"values: expected fewer goals than the {self.floor_cells} cells of floor, so that "
                f"one is left to start from, got {len(self.values)}; no goal could be reached"
            )

    @property
    def floor_cells(self) -> int:
        """Cells that are no wall, the same number in every maze of these parameters."""
        if self.kind == "rooms":
            # The inside, but for a wall each way, which share a cell and have four doors.
            inside = self.size - 2
            return inside**2 - (2 * inside - 1) + 4
        cells = (self.size - 1) // 2
        return 2 * cells**2 - 1

    @property
    def num_actions(self) -> int:
        """Up, right, down and left."""
        return len(ACTIONS)

    def make_instance(self, key: jax.Array) -> Maze:
        """Draws a maze."""
        wall_key, place_key = jax.random.split(key)
        make_walls = _perfect_walls if self.kind == "perfect" else _room_walls
        walls = make_walls(wall_key, self.size)
        start, goals = _places(place_key, walls, len(self.values))
        values = jnp.asarray(self.values, jnp.float32)
        cells = self.size**2
        payoff = jnp.zeros(cells).at[goals].set(values)
        planes = jnp.stack([walls.astype(jnp.float32), payoff.reshape(walls.shape)], axis=-1)
        return Maze(
            walls=walls,
            start=start,
            goals=goals,
            values=values,
            following=_following(walls),
            payoff=payoff,
            ends=jnp.zeros(cells, bool).at[goals].set(True),
            views=_windows(planes, self.radius) if self.view == "local" else planes,
        )

    def reset(self, instance: Maze) -> tuple[Observation, MazeState]:
        """Starts an episode."""
        none = jnp.zeros((), jnp.int32)
        state = MazeState(instance.start, none - 1, none, jnp.zeros((), bool))
        return self.observe(instance, state), state

    def step(
        self, instance: Maze, state: MazeState, action: jax.Array
    ) -> tuple[Observation, MazeState, jax.Array, jax.Array]:
        """One step: (observation, state, reward, done). Behind the end nothing moves or pays."""
        cell = jnp.where(state.done, state.cell, instance.following[state.cell, action])
        time = state.time + 1
        reward = jnp.where(state.done, 0, instance.payoff[cell])
        done = state.done | instance.ends[cell] | (time >= self.horizon)
        state = MazeState(cell, jnp.asarray(action, jnp.int32), time, done)
        return self.observe(instance, state), state, reward, done

    def observe(self, instance: Maze, state: MazeState) -> Observation:
        """What an agent sees: planes of walls and values (and its own place), and its last action.

        Returns:
          Grid `[2 radius + 1, 2 radius + 1, 2]` around the agent, or `[S, S, 3]`; features `[4]`,
          the last action one-hot, all 0 before the first.
        """
        features = jax.nn.one_hot(state.last_action, self.num_actions)
        if self.view == "local":
            return Observation(instance.views[state.cell], features)
        here = jax.nn.one_hot(state.cell, self.size**2).reshape(self.size, self.size, 1)
        return Observation(jnp.concatenate([instance.views, here], axis=-1), features)

    def optimal_return(self, instance: Maze) -> jax.Array:
        """The largest return of any episode, by shortest paths; see `maze_solver`."""
        return solver.optimal_return(
            instance.walls, instance.start, instance.goals, instance.values, self.horizon
        )


def _perfect_walls(key: jax.Array, size: int) -> jax.Array:
    """A random minimum spanning tree of the cells, by Prim's algorithm; True at walls."""
    side = (size - 1) // 2
    edges, passages = _grid_edges(side)
    if not len(edges):
        return jnp.ones((size, size), bool).at[1, 1].set(False)
    # Ties between random weights go to the lower number, on every backend alike.
    weights = jax.random.bits(key, (len(edges),)) >> 1
    ends = jnp.asarray(edges)

    def grow(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reached, opened = carry
        crossing = reached[ends[:, 0]] ^ reached[ends[:, 1]]
        edge = jnp.argmin(jnp.where(crossing, weights, jnp.uint32(2**32 - 1)))
        return reached.at[ends[edge]].set(True), opened.at[edge].set(True)

    start = (jnp.zeros(side**2, bool).at[0].set(True), jnp.zeros(len(edges), bool))
    _, opened = jax.lax.fori_loop(0, side**2 - 1, grow, start)
    walls = np.ones((size, size), bool)
    walls[1::2, 1::2] = False
    rows, columns = passages.T
    return jnp.asarray(walls).at[rows, columns].set(~opened)


def _grid_edges(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges `[E, 2]` between neighbors in a grid of cells, and where the wall between them is."""
    edges, passages = [], []
    for row in range(side):
        for column in range(side):
            for down, right in ((0, 1), (1, 0)):
                if row + down < side and column + right < side:
                    here = row * side + column
                    edges.append((here, here + down * side + right))
                    passages.append((2 * row + 1 + down, 2 * column + 1 + right))
    return np.array(edges, np.int32).reshape(-1, 2), np.array(passages).reshape(-1, 2)


def _room_walls(key: jax.Array, size: int) -> jax.Array:
    """Four rooms: a wall from top to bottom, one from side to side, and a door in each arm."""
    keys = jax.random.split(key, 6)
    row, column = (jax.random.randint(keys[axis], (), 2, size - 2) for axis in (0, 1))
    lines = jnp.arange(size)
    rows, columns = lines[:, None], lines[None, :]
    walls = (rows == row) | (columns == column)
    doors = (
        (rows == row) & (columns == jax.random.randint(keys[2], (), 1, column)),
        (rows == row) & (columns == jax.random.randint(keys[3], (), column + 1, size - 1)),
        (columns == column) & (rows == jax.random.randint(keys[4], (), 1, row)),
        (columns == column) & (rows == jax.random.randint(keys[5], (), row + 1, size - 1)),
    )
    for door in doors:
        walls &= ~door
    return walls | (rows % (size - 1) == 0) | (columns % (size - 1) == 0)


def _places(key: jax.Array, walls: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """A random start, and the goals' cells in ascending order of their intended distance."""
    start_key, goal_key = jax.random.split(key)
    cells = walls.size
    order = (jax.random.bits(start_key, (cells,)) >> 1).astype(jnp.int32)
    start = jnp.argmax(jnp.where(walls.ravel(), -1, order)).astype(jnp.int32)
    no_goals = jnp.zeros(cells, bool)
    distance = solver.distances(walls, start, no_goals).ravel()
    reachable = distance > 0
    farthest = jnp.max(distance)
    ties = (jax.random.bits(goal_key, (cells,)) % jnp.uint32(1024)).astype(jnp.int32)

    goals: list[jax.Array] = []
    on_a_path, taken = no_goals, no_goals
    for number in reversed(range(count)):
        # In units that keep it an integer, and a cell on a path after all that are not.
        off = jnp.abs(count * distance - (number + 1) * farthest) + on_a_path * (count * cells)
        off = jnp.where(reachable & ~taken, off, jnp.iinfo(jnp.int32).max)
        goal = jnp.argmin(jnp.where(off == jnp.min(off), ties, 1024)).astype(jnp.int32)
        back = solver.distances(walls, goal, no_goals).ravel()
        on_a_path |= (distance >= 0) & (distance + back == distance[goal])
        taken = taken.at[goal].set(True)
        goals.append(goal)
    return start, jnp.stack(goals[::-1])


def _following(walls: jax.Array) -> jax.Array:
    """Where each action leads from each cell, `[S * S, 4]`; walls keep one in place."""
    size = walls.shape[0]
    here = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1)
    there = np.clip(here[:, :, None] + MOVES, 0, size - 1)
    number = here @ np.array([size, 1])
    target = there @ np.array([size, 1])
    blocked = walls[there[..., 0], there[..., 1]]
    moved = jnp.where(blocked, number[..., None], target)
    return moved.reshape(size**2, len(MOVES)).astype(jnp.int32)


def _windows(planes: jax.Array, radius: int) -> jax.Array:
    """The square around each cell, `[S * S, W, W, 2]`; beyond the maze there are walls."""
    size, width = planes.shape[0], 2 * radius + 1
    edge = [(radius, radius)] * 2
    padded = jnp.stack(
        [
            jnp.pad(planes[..., 0], edge, constant_values=1),
            jnp.pad(planes[..., 1], edge),
        ],
        axis=-1,
    )
    offsets = np.arange(size)[:, None] + np.arange(width)
    windows = padded[offsets[:, None, :, None], offsets[None, :, None, :]]
    return windows.reshape(size**2, width, width, 2)
