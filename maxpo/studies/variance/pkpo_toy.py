"""PKPO's one-dimensional toy problem, the published figures of it, and MaxPO beside them.

x ~ N(theta, 0.1), reward x^2 on [0, 1] and 0 elsewhere. The objective J_k and its derivative have a
closed form up to quadrature, so what is estimated can be checked point by point.

See "Pass@K Policy Optimization" (https://arxiv.org/abs/2505.15201), figures 1 and 4.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from maxpo import max_at_k
from maxpo.bandits import task as bandit
from maxpo.methods import bind_estimator
from maxpo.plotting import WIDTH, styles, tidy
from maxpo.studies.variance.moments import Estimate, mean

__all__ = ["STD", "Draws", "curve", "draw", "exact_objective", "figure", "variance", "variances"]

STD = 0.1


class Draws(NamedTuple):
    """Independent estimates, one from each group.

    Attributes:
      objectives: `[M]`, of J_k.
      gradients: `[E, M]`, of its derivative in theta, by estimator.
    """

    objectives: jax.Array
    gradients: jax.Array


@partial(jax.jit, static_argnames=("names", "group_size", "estimates"))
def draw(
    key: jax.Array,
    theta: jax.Array,
    k: jax.Array,
    *,
    names: Sequence[str],
    group_size: int,
    estimates: int,
) -> Draws:
    """Estimates of the objective and its derivative from M groups of N samples.

    Compiled once for each N: theta and k are traced.

    Args:
      key: PRNG key.
      theta: Mean of the policy, a scalar.
      k: Number of samples whose best counts, 1 <= k <= N - 1.
      names: E names of estimators, as a tuple.
      group_size: N.
      estimates: M.
    """
    noise = jax.random.normal(key, (estimates, group_size))
    rewards = bandit.SquareOnInterval(jnp.zeros((1, 1)), 0.0, STD).reward(theta + STD * noise)
    scores = noise / STD
    advantages = [bind_estimator(name, lambda k: k)(rewards, k) for name in names]
    gradients = jnp.stack([jnp.mean(a * scores, axis=-1) for a in advantages])
    return Draws(max_at_k(rewards, k), gradients)


def variance(samples: np.ndarray) -> Estimate:
    """Unbiased variance of independent samples `[M]`; its error from their fourth moment."""
    samples = np.asarray(samples, np.float64)
    squares = (samples - samples.mean()) ** 2
    unbiased = squares.sum() / (len(samples) - 1)
    return Estimate(unbiased, squares.std() / len(samples) ** 0.5)


def curve(
    key: jax.Array, thetas: Sequence[float], k: int, *, group_size: int, estimates: int
) -> list[dict[str, Any]]:
    """Figure 1 at one k: objective and derivative (by MaxPO) over theta, estimated and exact."""
    rows = []
    for index, theta in enumerate(thetas):
        draws = draw(
            jax.random.fold_in(key, index),
            jnp.float32(theta),
            jnp.float32(k),
            names=("maxpo",),
            group_size=group_size,
            estimates=estimates,
        )
        objective, derivative = mean(draws.objectives), mean(draws.gradients[0])
        exact, slope = exact_objective(theta, k)
        rows.append(
            {
                "theta": float(theta),
                "k": k,
                "group_size": group_size,
                "objective": objective.value,
                "objective_error": objective.error,
                "objective_exact": exact,
                "derivative": derivative.value,
                "derivative_error": derivative.error,
                "derivative_exact": slope,
            }
        )
    return rows


@jax.jit
def _exact_objective(theta: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(bandit.expected_max_of_square)(theta, STD, k)


def exact_objective(theta: float, k: float) -> tuple[float, float]:
    """J_k and its derivative in theta, by quadrature."""
    value, slope = _exact_objective(jnp.float32(theta), jnp.float32(k))
    return float(value), float(slope)


def variances(
    key: jax.Array,
    theta: float,
    k: int,
    *,
    names: Sequence[str],
    group_size: int,
    estimates: int,
) -> dict[str, Any]:
    """Figure 4 at one N: the variance of each estimator of the derivative."""
    draws = draw(
        key,
        jnp.float32(theta),
        jnp.float32(k),
        names=tuple(names),
        group_size=group_size,
        estimates=estimates,
    )
    figures = {
        name: variance(samples) for name, samples in zip(names, draws.gradients, strict=True)
    }
    return {
        "theta": theta,
        "k": k,
        "group_size": group_size,
        "variance": {name: figure.value for name, figure in figures.items()},
        "variance_error": {name: figure.error for name, figure in figures.items()},
    }


def figure(curves: Sequence[Mapping[str, Any]], variances: Sequence[Mapping[str, Any]]) -> Figure:
    """Objective and derivative over theta, and variance over N: lines exact, points estimated."""
    drawn = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    ks = list(dict.fromkeys(row["k"] for row in curves))
    low, high = (pick(row["theta"] for row in curves) for pick in (min, max))
    fine, shades = np.linspace(low, high, 201), np.linspace(0.65, 0.0, len(ks))
    for k, shade, marker in zip(ks, shades, itertools.cycle("osD^v<>"), strict=False):
        rows = [row for row in curves if row["k"] == k]
        exact = np.array([exact_objective(theta, k) for theta in fine])
        for axis, metric, line in (
            (left, "objective", exact[:, 0]),
            (middle, "derivative", exact[:, 1]),
        ):
            gray = str(shade)
            axis.plot(fine, line, color=gray, linewidth=1.5)
            axis.errorbar(
                [row["theta"] for row in rows],
                [row[metric] for row in rows],
                [2 * row[f"{metric}_error"] for row in rows],
                color=gray,
                linestyle="",
                marker=marker,
                markersize=4,
                label=f"k = {k}",
            )
    left.set_title("objective $J_k$ (points: estimates)", loc="left", fontsize=11)
    middle.set_title(r"derivative $dJ_k / d\theta$ (points: maxpo)", loc="left", fontsize=11)
    middle.axhline(0, color="black", linewidth=0.6)
    for axis in (left, middle):
        axis.set_xlabel(r"$\theta$")
        tidy(axis, margin=0.05)
    left.legend(frameon=False, loc="upper left")

    for name, style in styles(list(variances[0]["variance"])).items():
        right.errorbar(
            [row["group_size"] for row in variances],
            [row["variance"][name] for row in variances],
            [2 * row["variance_error"][name] for row in variances],
            label=name,
            **style,
        )
    theta, k = variances[0]["theta"], variances[0]["k"]
    right.set_title(rf"its variance at $\theta$ = {theta:g}, k = {k}", loc="left", fontsize=11)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks([row["group_size"] for row in variances])
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("samples N")
    tidy(right, margin=0.05)
    right.minorticks_off()
    right.legend(frameon=False, loc="lower left")
    return drawn
