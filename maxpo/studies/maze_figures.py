"""Figures of the maze study: max@k curves, learning curves, and episodes drawn into a maze."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from maxpo import plotting
from maxpo.mazes.maze import MOVES, Maze
from maxpo.plotting import (
    WIDTH,
    Style,
    draw_line,
    label_ticks,
    legend_below,
    styles,
    tidy,
    with_errors,
)
from maxpo.studies import maze

__all__ = ["BEFORE", "curves", "draw_maze", "draw_paths", "learning_curves", "trajectories", "walk"]

BEFORE = "before training"
_BEFORE_STYLE: Style = {"color": "#9a9a9a", "linestyle": (0, (1, 2)), "linewidth": 1.5}


def curves(
    figures: Mapping[str, Mapping[str, float]],
    ks: Sequence[int],
    eval_k: float,
    optimum: float | None,
) -> Figure:
    """max@k and pass@k over k, with bands of two standard errors.

    Args:
      figures: By method, as `maze.summarize_curves` makes them.
      ks: The k of the figures.
      eval_k: The k that was trained for, marked.
      optimum: Mean of the best possible returns, drawn as a line; None where unknown.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = ("max@k: expected best return of k episodes", "pass@k: the best goal is among k")
    lines = styles([name for name in figures if name != BEFORE]) | {BEFORE: _BEFORE_STYLE}
    for axis, label, title in zip(axes, ("max", "pass"), titles, strict=True):
        for name, values in figures.items():
            mean = [values[f"{label}@{k}"] for k in ks]
            error = [values[f"{label}@{k}_sem"] for k in ks]
            draw_line(axis, *with_errors(ks, mean, error), name, lines[name])
        axis.axvline(eval_k, color="#cccccc", linewidth=1, zorder=0)
        axis.set_xscale("log", base=2)
        label_ticks(axis, ks)
        axis.set_xlabel("k")
        axis.set_ylim(0, 1.02 if label == "pass" else None)
        tidy(axis, title)
    if optimum is not None:
        axes[0].axhline(optimum, color="#222222", linewidth=1, zorder=1, label="optimal return")
    legend_below(figure, axes[0])
    return figure


def learning_curves(history: Sequence[Mapping[str, Any]], eval_k: float) -> Figure:
    """`maze.METRICS` over updates, with bands of two standard errors over seeds."""
    panels = {
        title.format(k=eval_k): plotting.from_rows(history, "update", metric)
        for metric, title in maze.METRICS.items()
    }
    return plotting.learning_curves(panels, xlabel="updates")


def trajectories(study: maze.Study, states: Mapping[str, Any], keys: jax.Array) -> Figure:
    """One group of the first seed in one held-out maze, before training and by each method."""
    instance = jax.tree.map(lambda x: x[0], study.test)
    before = study.init(keys)
    panels = {BEFORE: before} | {name: states[name] for name in study.methods}
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH / 3 * columns, 4.1 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.asarray(instance.values)
    for axis, (name, state) in zip(axes, panels.items(), strict=False):
        first = jax.tree.map(lambda x: x[0], state)
        episodes = study.sample(instance, keys[0], first)
        draw_maze(axis, instance)
        paths = [
            walk(instance, actions[mask])
            for actions, mask in zip(
                np.asarray(episodes.actions)[:, 0].T, np.asarray(episodes.mask)[:, 0].T, strict=True
            )
        ]
        returns = np.asarray(episodes.returns)[0]
        draw_paths(axis, paths, returns, best=float(values.max()))
        axis.set_title(f"{name}: best {returns.max():g}, mean {returns.mean():.2f}", fontsize=10)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    outcomes = [0.0, *sorted(values.tolist())]
    figure.legend(
        [Line2D([], [], color=_shade(value, values.max()), linewidth=2.5) for value in outcomes],
        ["no goal", *(f"goal of {value:g}" for value in outcomes[1:])],
        loc="outside lower center",
        ncols=len(outcomes),
        frameon=False,
    )
    return figure


def walk(instance: Maze, actions: np.ndarray) -> np.ndarray:
    """The cells of an episode as rows and columns `[T + 1, 2]`, from its actions `[T]`."""
    walls = np.asarray(instance.walls)
    place = np.array(divmod(int(instance.start), walls.shape[0]))
    path = [place]
    for action in actions:
        there = place + MOVES[action]
        place = place if walls[tuple(there)] else there
        path.append(place)
    return np.array(path)


def draw_maze(axis: Axes, instance: Maze) -> None:
    """Walls, the start, and the goals with what they pay."""
    walls = np.asarray(instance.walls)
    size = walls.shape[0]
    axis.imshow(walls, cmap=ListedColormap(["#ffffff", "#3c3c46"]), interpolation="nearest")
    row, column = divmod(int(instance.start), size)
    axis.plot(column, row, "o", color="#4d4d4d", markersize=7, zorder=4)
    for goal, value in zip(np.asarray(instance.goals), np.asarray(instance.values), strict=True):
        row, column = divmod(int(goal), size)
        axis.text(
            column,
            row,
            f"{value:g}".removeprefix("0"),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            zorder=5,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "#ffe08a", "edgecolor": "none"},
        )
    axis.set_xticks([])
    axis.set_yticks([])


def draw_paths(
    axis: Axes, paths: Sequence[np.ndarray], returns: np.ndarray, *, best: float
) -> None:
    """Paths side by side within their cells, colored by what they were paid; gray for nothing."""
    offsets = np.linspace(-0.28, 0.28, len(paths))
    for path, value, offset in sorted(
        zip(paths, returns, offsets, strict=True), key=lambda item: item[1]
    ):
        color = _shade(value, best)
        line = path + offset
        axis.plot(line[:, 1], line[:, 0], color=color, linewidth=1.1, alpha=0.85, zorder=3)
        axis.plot(line[-1, 1], line[-1, 0], ".", color=color, markersize=4, zorder=4)


def _shade(value: float, best: float) -> Any:
    return colormaps["viridis_r"](0.25 + 0.75 * value / best) if value > 0 else "#b9b9c0"
