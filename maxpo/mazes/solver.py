"""Shortest paths in mazes, and with them the best return that an episode can have."""

import functools

import jax
import jax.numpy as jnp

__all__ = ["MOVES", "distances", "optimal_return"]

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Rows and columns that an action moves by: up, right, down, left."""


def distances(walls: jax.Array, source: jax.Array, ends: jax.Array) -> jax.Array:
    """Steps from a cell to every other, by breadth-first search.

    Args:
      walls: `[H, W]` boolean, True at walls; beyond the edge is wall as well.
      source: `[]` integer, a cell `row * W + column` that is no wall.
      ends: `[H * W]` boolean. Cells that a path may reach but not cross, such as goals that end an
        episode. The source may be one.

    Returns:
      `[H, W]` int32; -1 where no path leads, and at walls.

    >>> walls = jnp.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
    >>> print(distances(walls, jnp.array(5), jnp.zeros(12, bool))[1])
    [-1  0  1 -1]
    """
    height, width = walls.shape
    unreached = jnp.int32(height * width)
    start = jnp.full(walls.size, unreached).at[source].set(0).reshape(walls.shape)
    blocks = ends.reshape(walls.shape)
    blocks &= start > 0

    def relax(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        distance, _ = carry
        leaving = jnp.where(blocks, unreached, distance)
        padded = jnp.pad(leaving, 1, constant_values=unreached)
        neighbors = [
            padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
            for down, right in MOVES
        ]
        nearest = functools.reduce(jnp.minimum, neighbors) + 1
        nearest = jnp.where(walls, unreached, jnp.minimum(nearest, distance))
        return nearest, jnp.any(nearest != distance)

    distance, _ = jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.array(True)))
    return jnp.where(distance < unreached, distance, -1)


def optimal_return(
    walls: jax.Array, start: jax.Array, goals: jax.Array, values: jax.Array, horizon: int
) -> jax.Array:
    """The largest return of an episode that ends at the first goal it reaches.

    The largest value of the goals that can be reached within the horizon without crossing another,
    or 0 if that is more: an episode need not reach any.

    Args:
      walls: `[H, W]` boolean.
      start: `[]` integer, a cell.
      goals: `[G]` integers, cells.
      values: `[G]`.
      horizon: Largest number of steps.

    Returns:
      `[]`, in the unit of the values.
    """
    ends = jnp.zeros(walls.size, bool).at[goals].set(True)
    steps = distances(walls, start, ends).ravel()[goals]
    reachable = (steps >= 0) & (steps <= horizon)
    return jnp.maximum(jnp.max(jnp.where(reachable, values, -jnp.inf)), 0)
