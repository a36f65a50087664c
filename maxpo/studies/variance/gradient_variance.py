"""The gradient variance study: what it measures, in jobs that a run can resume between.

A cell is a bandit, a policy, a group size N and a k. A job measures the cells that share all but k,
on the same groups. `maxpo.studies.variance.moments` does the sampling; where rewards are 0/1 and
the policy is uniform within the right and the wrong arms, a cell also holds the variance in closed
form (`maxpo.studies.variance.binary_moments`).
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maxpo import estimators, losses, runs
from maxpo.methods import needs_only_k
from maxpo.studies.jobs import Job, Row
from maxpo.studies.variance import pkpo_toy, unbiasedness
from maxpo.studies.variance.binary_moments import exact_moments
from maxpo.studies.variance.moments import Moments, estimator_moments, log2_ratio, mean, ratio
from maxpo.studies.variance.points import Point, make_bandits, make_points, two_reward_bandits

__all__ = [
    "PAIR",
    "REFERENCE",
    "agreement",
    "check_config",
    "check_estimators",
    "exact_map_row",
    "exact_variance",
    "ks_for",
    "make_jobs",
    "summarize",
    "table",
]

# What all others are compared with, and the pair of the map.
REFERENCE = "pkpo_loo_minus_one"
PAIR = (REFERENCE, "maxpo")

# Relative error beyond which a variance is not resolved: with so few groups that teach anything,
# the rarest that matter were probably never drawn, and the error itself is too small.
_RESOLVED = 0.1


def check_estimators(names: Sequence[str]) -> None:
    """Raises ValueError unless they are different, need only a k, and `PAIR` is among them."""
    for name in names:
        if not needs_only_k(name):
            raise ValueError(f"estimators: expected ones that need only a k, got {name}")
    if not {*PAIR} <= {*names}:
        raise ValueError(f"estimators: expected {' and '.join(PAIR)} among them, got {names}")
    if len({*names}) < len(names):
        raise ValueError(f"estimators: expected different names, got {names}")


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    check_estimators(config.estimators)
    for field, values in (
        ("map.num_arms", config.map.num_arms),
        ("map.success_rate", config.map.success_rate),
        ("toy.thetas", config.toy.thetas),
        ("toy.ks", config.toy.ks),
        ("toy.group_sizes", config.toy.group_sizes),
        ("unbiasedness.ks", config.unbiasedness.ks),
    ):
        if not values:
            raise ValueError(f"{field}: expected at least one value, got none")
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "bandits": 2,
            "batches": 2,
            "toy.estimates": 2,
            "map.group_size": 3,
            "map.num_arms": 2,
        },
        finite=("toy.theta", "toy.thetas"),
    )
    for rate in config.map.success_rate:
        if not 0 < rate < 1:
            raise ValueError(f"map.success_rate: expected rates between 0 and 1, got {rate}")
    for field, ks, n in (
        ("toy.ks", config.toy.ks, config.toy.curve_group_size - 1),
        ("toy.k", (config.toy.k,), min(config.toy.group_sizes) - 1),
    ):
        if not all(1 <= k <= n for k in ks):
            raise ValueError(f"{field}: expected 1 <= k <= N - 1 = {n}, got {ks}")
    n, ks = config.unbiasedness.group_size, config.unbiasedness.ks
    if not 2 <= n <= 8:
        raise ValueError(
            f"unbiasedness.group_size: expected 2..8, because 3^N groups are enumerated, got {n}"
        )
    if not all(2 <= k <= n for k in ks):
        raise ValueError(f"unbiasedness.ks: expected 2 <= k <= N = {n}, got {ks}")
    make_points(config)


def make_jobs(config: ConfigDict) -> list[Job]:
    """The work of a run in order; a job takes a key of its own and returns the rows that it logs.

    Every row has a `section`: unbiasedness, sweep, point, map, toy curve or toy variance.
    """
    jobs: list[Job] = [partial(_unbiasedness, config=config)]
    jobs += [partial(_measure, config=config, point=point) for point in make_points(config)]
    jobs += [
        partial(_measure_map, config=config, num_arms=num_arms, success_rate=rate)
        for num_arms in config.map.num_arms
        for rate in config.map.success_rate
    ]
    jobs += [partial(_toy_curve, config=config, k=k) for k in config.toy.ks]
    jobs += [partial(_toy_variance, config=config, group_size=n) for n in config.toy.group_sizes]
    return jobs


def ks_for(group_size: int) -> list[int]:
    """1, 2, 4, .. and N - 1.

    >>> ks_for(16)
    [1, 2, 4, 8, 15]
    """
    powers = [2**i for i in range(group_size.bit_length()) if 2**i < group_size - 1]
    return [*powers, group_size - 1]


def summarize(moments: Moments, names: Sequence[str]) -> Row:
    """Variance and signal-to-noise ratio of each estimator, and its variance over `REFERENCE`'s.

    Args:
      moments: Leaves `[C, E]`.
      names: E names, among them `REFERENCE`.

    Returns:
      By name `variance` (trace of the covariance), `snr` (|E g|^2 over it), `log2_ratio` of the
      variance to that of `REFERENCE`, and `_error` of each; NaN where no gradient was seen. And
      `resolved`: whether every variance is known to 10%. Where too few groups had a gradient for
      that, errors are not to be trusted.
    """
    trace, signal = np.asarray(moments.trace), np.asarray(moments.signal)
    reference = trace[:, names.index(REFERENCE)]
    row: Row = {}
    for metric, estimate in (
        ("variance", lambda i: mean(trace[:, i])),
        ("snr", lambda i: ratio(signal[:, i], trace[:, i])),
        ("log2_ratio", lambda i: log2_ratio(trace[:, i], reference)),
    ):
        estimates = {name: estimate(i) for i, name in enumerate(names)}
        row[metric] = {name: value for name, (value, _) in estimates.items()}
        row[f"{metric}_error"] = {name: error for name, (_, error) in estimates.items()}
    row["resolved"] = all(
        row["variance_error"][name] < _RESOLVED * row["variance"][name] for name in names
    )
    return row


def exact_variance(
    name: str, k: int, *, group_size: int, success_rate: float, right_arms: int, wrong_arms: int
) -> float:
    """Trace of a named estimator's covariance in closed form; see `binary_moments`."""
    function = estimators.get(name)
    trace, _ = exact_moments(
        partial(function, k=k) if _takes_k(name) else function,
        group_size=group_size,
        success_rate=success_rate,
        right_arms=right_arms,
        wrong_arms=wrong_arms,
    )
    return trace


def exact_map_row(num_arms: int, success_rate: float, *, group_size: int, k: int) -> Row:
    """A cell of the regime map in closed form: log2 of MaxPO's variance over `REFERENCE`'s.

    Half of the arms are right and pay 1, the others 0; the policy is uniform within either kind.
    """
    reference, maxpo = (
        exact_variance(
            name,
            k,
            group_size=group_size,
            success_rate=success_rate,
            right_arms=num_arms // 2,
            wrong_arms=num_arms - num_arms // 2,
        )
        for name in PAIR
    )
    return {
        "num_arms": num_arms,
        "success_rate": success_rate,
        "group_size": group_size,
        "k": k,
        "exact_log2_ratio": float(np.log2(maxpo / reference)),
    }


def table(rows: Sequence[Row], config: ConfigDict) -> list[Row]:
    """Variances at the config's points and of PKPO's toy problem, as rows for `format_table`."""
    shown = [(row["name"], row) for row in rows if row["section"] == "point" and row["shown"]]
    shown += [
        (f"toy, theta = {config.toy.theta:g}", row)
        for row in rows
        if row["section"] == "toy variance"
    ]
    table = []
    for name, row in shown:
        line = {"point": name, "N": row["group_size"], "k": row["k"]}
        for estimator, value in row["variance"].items():
            line |= {estimator: value, f"{estimator}_sem": row["variance_error"][estimator]}
        table.append(line)
    return table


def agreement(rows: Sequence[Row]) -> Row:
    """How resolved Monte Carlo figures compare with those in closed form, in standard errors.

    Returns:
      For each kind of comparison the number of figures, the root mean square of
      z = (estimate - exact) / error, which is 1 for errors that are right, and the largest |z|.
    """
    pairs: dict[str, list[tuple[float, float, float]]] = {"variance": [], "map": [], "toy": []}
    for row in rows:
        if row.get("resolved"):
            pairs["variance"] += [
                (row["variance"][name], row["variance_error"][name], exact)
                for name, exact in row.get("exact_variance", {}).items()
            ]
        if row["section"] == "map" and row["resolved"]:
            value, error = row["log2_ratio"]["maxpo"], row["log2_ratio_error"]["maxpo"]
            pairs["map"].append((value, error, row["exact_log2_ratio"]))
        if row["section"] == "toy curve":
            pairs["toy"] += [
                (row[metric], row[f"{metric}_error"], row[f"{metric}_exact"])
                for metric in ("objective", "derivative")
            ]
    summary = {}
    for kind, values in pairs.items():
        scores = np.array([(value - exact) / error for value, error, exact in values if error > 0])
        if len(scores):
            summary[kind] = {
                "figures": len(scores),
                "rms_z": float(np.sqrt(np.mean(scores**2))),
                "largest_z": float(np.abs(scores).max()),
            }
    return summary


def _takes_k(name: str) -> bool:
    return "k" in inspect.signature(estimators.get(name)).parameters


def _unbiasedness(key: jax.Array, *, config: ConfigDict) -> list[Row]:
    del key  # Enumerated, not sampled.
    rows = unbiasedness.table(config.unbiasedness.group_size, config.unbiasedness.ks)
    return [{"section": "unbiasedness", **row} for row in rows]


def _measure(key: jax.Array, *, config: ConfigDict, point: Point) -> list[Row]:
    bandit_key, sample_key = jax.random.split(key)
    fields, names = point.fields, tuple(config.estimators)
    bandits = make_bandits(bandit_key, fields, config.bandits)
    ks = sorted({*ks_for(fields["group_size"]), fields["k"]})
    moments = estimator_moments(
        sample_key,
        bandits,
        jnp.array(ks, jnp.float32),
        names=names,
        group_size=fields["group_size"],
        batches=config.batches,
    )
    entropy = float(jnp.mean(losses.entropy(bandits.logits)))
    exact = _binary(fields, np.asarray(bandits.rewards[0]))
    rows = []
    for index, k in enumerate(ks):
        at_k = Moments(moments.trace[:, index], moments.signal[:, index])
        row = point.labels | fields | {"k": k, "shown": k == fields["k"], "entropy": entropy}
        row |= summarize(at_k, names)
        if exact:
            row["exact_variance"] = {name: exact_variance(name, k, **exact) for name in names}
        rows.append(row)
    return rows


def _binary(fields: Mapping[str, Any], rewards: np.ndarray) -> dict[str, Any]:
    """What `exact_variance` needs, or nothing where the closed form does not hold."""
    right = int(rewards.sum())
    wrong = len(rewards) - right
    fixed = fields["arms"] == "quantiles" and fields["logit_noise"] == 0
    if fields["law"] != "bernoulli" or not fixed or not right or not wrong:
        return {}
    odds = np.exp(fields["logit_tilt"]) * right
    return {
        "group_size": fields["group_size"],
        "success_rate": odds / (odds + wrong),
        "right_arms": right,
        "wrong_arms": wrong,
    }


def _measure_map(
    key: jax.Array, *, config: ConfigDict, num_arms: int, success_rate: float
) -> list[Row]:
    n = config.map.group_size
    moments = estimator_moments(
        key,
        two_reward_bandits(num_arms, success_rate, config.bandits),
        jnp.arange(1, n, dtype=jnp.float32),
        names=PAIR,
        group_size=n,
        batches=config.batches,
    )
    return [
        {
            "section": "map",
            **exact_map_row(num_arms, success_rate, group_size=n, k=k),
            **summarize(Moments(moments.trace[:, index], moments.signal[:, index]), PAIR),
        }
        for index, k in enumerate(range(1, n))
    ]


def _toy_curve(key: jax.Array, *, config: ConfigDict, k: int) -> list[Row]:
    toy = config.toy
    rows = pkpo_toy.curve(
        key, toy.thetas, k, group_size=toy.curve_group_size, estimates=toy.estimates
    )
    return [{"section": "toy curve", **row} for row in rows]


def _toy_variance(key: jax.Array, *, config: ConfigDict, group_size: int) -> list[Row]:
    toy = config.toy
    row = pkpo_toy.variances(
        key,
        toy.theta,
        toy.k,
        names=[name for name in config.estimators if _takes_k(name)],
        group_size=group_size,
        estimates=toy.estimates,
    )
    return [{"section": "toy variance", **row}]
