"""Where the gradient variance study measures: reward laws, policies and the points of its grid."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.variance.moments import Bandits

__all__ = [
    "LAWS",
    "Point",
    "bernoulli",
    "gaussian",
    "make_bandits",
    "make_points",
    "pareto",
    "two_reward_bandits",
]


class Point(NamedTuple):
    """A place in the grid.

    Attributes:
      labels: What its rows are found by: the section and the axis and value, or the name.
      fields: All fields of the config's `base`, with its own values.
    """

    labels: dict[str, Any]
    fields: dict[str, Any]


def gaussian(q: jax.Array, std: float) -> jax.Array:
    """Quantiles of N(0, std^2)."""
    return std * jax.scipy.special.ndtri(q)


def bernoulli(q: jax.Array, success_rate: float) -> jax.Array:
    """Quantiles of 0/1 rewards."""
    return (q > 1 - success_rate).astype(jnp.float32)


def pareto(q: jax.Array, tail_exponent: float) -> jax.Array:
    """Quantiles of a power law: P(r > x) = x^-exponent for x >= 1."""
    return (1 - q) ** (-1 / tail_exponent)


LAWS: Mapping[str, Callable[[jax.Array, float], jax.Array]] = {
    law.__name__: law for law in (gaussian, bernoulli, pareto)
}

# What an axis of a sweep sets in the base point, where it is not just the field of its name.
_AXES: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "success_rate": lambda rate: {"law": "bernoulli", "law_parameter": rate},
    "tail_exponent": lambda exponent: {"law": "pareto", "law_parameter": exponent},
    "group_size": lambda n: {"group_size": n, "k": max(1, n // 4)},
}


def make_points(config: ConfigDict) -> list[Point]:
    """All points of the config's sweeps and those that it names.

    Raises:
      ValueError: If a field of one has no sense, naming the point and the field.
    """
    base = config.base.to_dict()
    points = []
    for axis, values in config.sweep.items():
        for value in values:
            change = _AXES[axis](value) if axis in _AXES else {axis: value}
            labels = {"section": "sweep", "axis": axis, "value": value}
            points.append(_point(f"sweep.{axis}={value}", labels, base, change))
    for name, change in config.points.items():
        labels = {"section": "point", "name": name}
        points.append(_point(f"points.{name}", labels, base, change.to_dict()))
    return points


def _point(
    name: str, labels: dict[str, Any], base: Mapping[str, Any], change: Mapping[str, Any]
) -> Point:
    unknown = [field for field in change if field not in base]
    if unknown:
        raise ValueError(
            f"{name}: expected fields of base ({', '.join(base)}) or one of the axes "
            f"{', '.join(_AXES)}; got {', '.join(unknown)}"
        )
    fields = {**base, **change}
    if fields["law"] not in LAWS:
        raise ValueError(f"{name}: law: expected one of {', '.join(LAWS)}; got {fields['law']!r}")
    if fields["arms"] not in ("quantiles", "drawn"):
        raise ValueError(f"{name}: arms: expected quantiles or drawn; got {fields['arms']!r}")
    try:
        runs.check_numbers(
            ConfigDict(fields),
            at_least={"num_arms": 2, "group_size": 3, "logit_noise": 0},
            above={"law_parameter": 0},
            finite=("logit_tilt",),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if fields["law"] == "bernoulli" and fields["law_parameter"] > 1:
        raise ValueError(
            f"{name}: law_parameter: expected a success rate of at most 1, got "
            f"{fields['law_parameter']}"
        )
    if not 1 <= fields["k"] <= fields["group_size"] - 1:
        raise ValueError(
            f"{name}: k: expected 1 <= k <= group_size - 1 = {fields['group_size'] - 1}, because "
            f"a sample is left out, got {fields['k']}"
        )
    return Point(labels, fields)


def make_bandits(key: jax.Array, fields: Mapping[str, Any], count: int) -> Bandits:
    """Bandits and policies of a point.

    Arms at `quantiles` of the law, those of (i + 1/2) / A, are the same in all bandits: what varies
    along an axis is then the axis, and a heavy tail has an average. `drawn` arms are not.

    Args:
      key: PRNG key.
      fields: The point's fields.
      count: C.

    Returns:
      Bandits with leaves `[C, A]`.
    """
    shape = (count, fields["num_arms"])
    reward_key, logit_key = jax.random.split(key)
    if fields["arms"] == "drawn":
        q = jax.random.uniform(reward_key, shape, minval=1e-7)
    else:
        q = jnp.broadcast_to((jnp.arange(shape[1]) + 0.5) / shape[1], shape)
    rewards = LAWS[fields["law"]](q, fields["law_parameter"])
    noise = jax.random.normal(logit_key, shape)
    return Bandits(fields["logit_tilt"] * rewards + fields["logit_noise"] * noise, rewards)


def two_reward_bandits(num_arms: int, success_rate: float, count: int) -> Bandits:
    """Half of the arms pay 1 and hold `success_rate` of the policy, evenly; the rest pays 0."""
    right = jnp.arange(num_arms) < num_arms // 2
    odds = jnp.where(
        right, success_rate / (num_arms // 2), (1 - success_rate) / (num_arms - num_arms // 2)
    )
    return Bandits(
        jnp.tile(jnp.log(odds), (count, 1)), jnp.tile(right.astype(jnp.float32), (count, 1))
    )
