"""How much of the Leave-Two-Out baseline pays, and whether past updates can tell.

With D and H the gradients of one group under the expected improvement and under its baseline, the
variance of `estimators.blended` is V(w) = V(0) - 2 w E[D.H] + w^2 E|H|^2. A cell is a bandit, a
policy, a group size N and a k; on the same groups it measures V(0), V(1), the best constant weight
w* = E[D.H] / E|H|^2 and the variance under the weight of past updates (`maxpo.baseline_weight`).

That rule is played on groups that it is not judged on: updates are drawn, with replacement, from
one half of a cell's groups, V(w) comes from the other half, and then the other way round. So an
excess over the best constant weight is not hidden by fitting; drawing from a finite half adds a
little to it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import baseline_weight, estimators, runs
from maxpo.bandits.task import expected_max
from maxpo.plotting import WIDTH, tidy
from maxpo.studies.jobs import Job, Row
from maxpo.studies.variance import count_baselines
from maxpo.studies.variance import points as variance_points
from maxpo.studies.variance.binary_moments import exact_moments
from maxpo.studies.variance.gradient_variance import ks_for
from maxpo.studies.variance.moments import Bandits, mean, ratio

__all__ = [
    "Products",
    "Rule",
    "above",
    "agreement",
    "certificates",
    "check_config",
    "counts",
    "figure",
    "inner_products",
    "make_jobs",
    "past_weights",
    "summarize",
    "table",
]

# A cell is not resolved where the groups that decide E|H|^2 are too rare (its relative error over
# groups is beyond the first number), or fewer than 16 of the bandits decide V(0), V(1) or E|H|^2
# (a relative error over bandits beyond the second): errors of ratios cannot be trusted there.
_RARE_GROUPS, _FEW_BANDITS = 0.05, 0.25
# Fraction of E|D|^2 below which a variance is lost in the float32 rounding of its difference.
_LEAST_VARIANCE = 1e-4
# Standard error of the rule's ratio beyond which a cell says little about it.
_KNOWN = 0.01
# Ratios are known no better than this: a rule that stays at an end must not count as above it.
_ROUNDING = 1e-6
# Bins of N sum(p^2), the expected number of samples that share a given sample's action.
_SHARING = ((0.0, 0.5), (0.5, 4.0), (4.0, np.inf))


class Products(NamedTuple):
    """Inner products of the two gradients of each group, `[C, Q, M]`, and the signal, `[C, Q]`.

    Attributes:
      improvement: |D|^2.
      cross: D.H.
      square: |H|^2.
      signal: |E D|^2 = |grad J_k|^2, in closed form.
    """

    improvement: jax.Array
    cross: jax.Array
    square: jax.Array
    signal: jax.Array


class Rule(NamedTuple):
    """How the weight of past updates is played.

    Attributes:
      decay: Decay of its moving averages.
      caution: Standard errors that it has to be away from an end.
      prompts: Groups in an update, each of a bandit of its own.
      chains: Independent repetitions.
      updates: Updates of each that count, after 5 / (1 - decay) that do not.
    """

    decay: float
    caution: float
    prompts: int
    chains: int
    updates: int


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    for field in ("num_arms", "success_rates", "logit_noises", "group_sizes"):
        if not config[field]:
            raise ValueError(f"{field}: expected at least one value, got none")
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "num_arms": 2,
            "group_sizes": 3,
            "logit_noises": 0,
            "bandits": 2,
            "rule.prompts": 1,
            "rule.chains": 1,
            "rule.updates": 1,
            "rule.caution": 0,
            "map_group_size": 3,
        },
        above={"tail_exponent": 0},
    )
    if config.groups < 2 or config.groups % 2:
        raise ValueError(f"groups: expected an even number, two halves, got {config.groups}")
    if not 0 <= config.rule.decay < 1:
        raise ValueError(f"rule.decay: expected a number in [0, 1), got {config.rule.decay}")
    for field in ("success_rates", "certificate.success_rates"):
        rates = config
        for part in field.split("."):
            rates = rates[part]
        if not all(0 < rate < 1 for rate in rates):
            raise ValueError(f"{field}: expected rates between 0 and 1, got {rates}")
    for n, k in config.certificate.pairs:
        if not 1 <= k <= n - 1:
            raise ValueError(f"certificate.pairs: expected 1 <= k <= N - 1, got {(n, k)}")


def make_jobs(config: ConfigDict) -> list[Job]:
    """The work of a run in order; a job measures cells that share all but k, on the same groups.

    Cells that share arms and N follow each other, so that each shape is compiled once. Success
    rates that are less than one arm, or all of them, are left out.
    """
    laws = [("gaussian", 1.0), ("pareto", config.tail_exponent)]
    laws += [("bernoulli", rate) for rate in config.success_rates]
    return [
        partial(
            _measure,
            config=config,
            fields={
                "num_arms": arms,
                "law": law,
                "law_parameter": parameter,
                "logit_noise": noise,
                "group_size": n,
            },
        )
        for arms in config.num_arms
        for n in config.group_sizes
        for law, parameter in laws
        for noise in config.logit_noises
        if law != "bernoulli" or 1 <= round(arms * parameter) < arms
    ]


@partial(jax.jit, static_argnames=("group_size", "groups"))
def inner_products(
    key: jax.Array, bandits: Bandits, ks: jax.Array, *, group_size: int, groups: int
) -> Products:
    """Inner products of D and H, group by group, at several k on the same groups.

    The formula is that of `maxpo.studies.variance.moments`, for two gradients instead of one:
    exact where the policy is nearly deterministic, and without an array of A numbers for each
    group. Compiled once for each shape: k is traced.

    Args:
      key: PRNG key.
      bandits: C bandits, done one after the other.
      ks: `[Q]`, each with 1 <= k <= N - 1.
      group_size: N.
      groups: M, drawn on each bandit.
    """

    def products(args: tuple[jax.Array, jax.Array, jax.Array]) -> Products:
        key, logits, rewards = args
        p = jax.nn.softmax(logits)
        actions = jax.random.choice(key, p.size, (groups, group_size), p=p)
        drawn = rewards[actions]

        def both(k: jax.Array) -> jax.Array:
            improvement = estimators.pkpo_loo_minus_one(drawn, k)
            return jnp.stack([improvement, estimators.leave_two_out_baseline(drawn, k)])

        shares = jax.vmap(both, out_axes=1)(ks) / group_size  # [2, Q, M, N]
        total = jnp.sum(shares, axis=-1)
        likeliest = jnp.argmax(p)
        p = p.at[likeliest].set(0)
        others = jnp.where(actions == likeliest, 0, shares)
        same = (actions[:, :, None] == actions[:, None, :]).astype(shares.dtype)
        by_arm = jnp.einsum("fqmi,mij->fqmj", others, same)
        overlap = jnp.sum(others * p[actions], axis=-1)
        at_likeliest = jnp.sum(others, axis=-1) - total * jnp.sum(p)

        def inner(x: int, y: int) -> jax.Array:
            return (
                jnp.sum(others[x] * by_arm[y], axis=-1)
                - total[x] * overlap[y]
                - total[y] * overlap[x]
                + total[x] * total[y] * jnp.sum(p**2)
                + at_likeliest[x] * at_likeliest[y]
            )

        def objective(logits: jax.Array, k: jax.Array) -> jax.Array:
            return expected_max(jax.nn.softmax(logits), rewards, k)

        slopes = jax.vmap(jax.grad(objective), in_axes=(None, 0))(logits, ks)
        return Products(inner(0, 0), inner(0, 1), inner(1, 1), jnp.sum(slopes**2, axis=-1))

    keys = jax.random.split(key, bandits.logits.shape[0])
    return jax.lax.map(products, (keys, bandits.logits, bandits.rewards))


@partial(jax.jit, static_argnames="rule")
def past_weights(
    key: jax.Array, cross: jax.Array, square: jax.Array, *, rule: Rule
) -> tuple[jax.Array, jax.Array]:
    """First two moments of the weight that past updates give, on a policy that stands still.

    Args:
      key: PRNG key.
      cross: `[..., n]`, D.H of the groups that updates are drawn from, with replacement.
      square: `[..., n]`, |H|^2 of the same groups.
      rule: The rule.

    Returns:
      E[w] and E[w^2], `[...]`, over chains and updates.
    """
    lead = cross.shape[:-1]
    skipped = round(5 / (1 - rule.decay))

    def over_chains(function: Callable[..., Any]) -> Callable[..., Any]:
        for _ in range(len(lead) + 1):
            function = jax.vmap(function)
        return function

    weight_of = over_chains(
        partial(baseline_weight.weight_of, decay=rule.decay, caution=rule.caution)
    )
    take_in = over_chains(partial(baseline_weight.add_products, decay=rule.decay))

    def update(
        state: baseline_weight.WeightState, key: jax.Array
    ) -> tuple[baseline_weight.WeightState, jax.Array]:
        weight = weight_of(state)  # Before the update's own moments enter.
        drawn = jax.random.randint(key, (rule.chains, rule.prompts), 0, cross.shape[-1])
        means = (jnp.mean(x[..., drawn], axis=-1) for x in (cross, square))
        return take_in(state, *means), weight

    state = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*lead, rule.chains, *x.shape)), baseline_weight.init_weight()
    )
    _, weights = jax.lax.scan(update, state, jax.random.split(key, skipped + rule.updates))
    weights = weights[skipped:]
    return jnp.mean(weights, axis=(0, -1)), jnp.mean(weights**2, axis=(0, -1))


def summarize(
    improvement: np.ndarray,
    cross: np.ndarray,
    square: np.ndarray,
    signal: np.ndarray,
    weights: Sequence[tuple[float, float]],
) -> Row:
    """The figures of one cell.

    Args:
      improvement: `[C, M]`, |D|^2.
      cross: `[C, M]`, D.H.
      square: `[C, M]`, |H|^2.
      signal: `[C]`, |E D|^2.
      weights: E[w] and E[w^2] of the rule, played on the first and on the second half of the M.

    Returns:
      `v0` and `v1`, the variances of weights 0 and 1; `best`, w*; `headroom`, V of w* clipped to
      [0, 1] over min(V(0), V(1)); `rule`, the same for the rule; each with its standard error over
      bandits as `_sem`. `rule_weight`, the mean weight. `resolved`, whether errors can be trusted.
    """
    q, c = square.mean(axis=1), cross.mean(axis=1)
    v0 = improvement.mean(axis=1) - signal
    v1 = v0 - 2 * c + q
    end = 0.0 if v0.mean() <= v1.mean() else 1.0
    better = v1 if end else v0
    best = ratio(c, q)
    w = float(np.clip(best.value, 0, 1))

    halves = np.split(np.arange(cross.shape[1]), 2)
    excess = np.zeros_like(q)
    for (first, second), judged in zip(weights, reversed(halves), strict=True):
        # V(w) - V(end) in expectation over w; end^2 is end.
        excess += (second - end) * square[:, judged].mean(axis=1) / 2
        excess -= 2 * (first - end) * cross[:, judged].mean(axis=1) / 2

    estimates = {
        "v0": mean(v0),
        "v1": mean(v1),
        "best": best,
        # The best weight has no first-order error of its own here: V is flat there, or w an end.
        "headroom": ratio(v0 - 2 * w * c + w**2 * q, better),
        "rule": ratio(better + excess, better),
    }
    row: Row = {}
    for name, estimate in estimates.items():
        row |= {name: estimate.value, f"{name}_sem": estimate.error}
    row["rule_weight"] = float(np.mean([first for first, _ in weights]))
    row["resolved"] = bool(
        _error_over_groups(square) < _RARE_GROUPS * q.mean()
        and all(error < _FEW_BANDITS * value for value, error in map(mean, (v0, v1, q)))
        and min(v0.mean(), v1.mean()) > _LEAST_VARIANCE * improvement.mean()
    )
    return row


def counts(rows: Sequence[Row]) -> Row:
    """In how many cells the rule is above or below the better one of the two ends, and where w* is.

    Of resolved cells, but for one line: what decides the others is rare, so their errors say
    little, but rare events are also where the rule is at its worst.
    """
    resolved = [row for row in rows if row["resolved"]]
    value, error, room, best = (
        np.array([row[name] for row in resolved])
        for name in ("rule", "rule_sem", "headroom", "best")
    )
    others = [row for row in rows if not row["resolved"]]
    return {
        "all": len(rows),
        "resolved": len(resolved),
        "rule above by 2 s.e.": sum(_is_above(row, 2) for row in resolved),
        "rule above by 3 s.e.": sum(_is_above(row, 3) for row in resolved),
        "rule above by 2 s.e. and 1%": sum(
            _is_above(row, 2) and row["rule"] > 1.01 for row in resolved
        ),
        "rule below by 3 s.e.": int(np.sum(value < 1 - 3 * error - _ROUNDING)),
        "rule below by 3 s.e. and 1%": int(np.sum(value < np.minimum(1 - 3 * error, 0.99))),
        "rule below by 3 s.e. and 5%": int(np.sum(value < np.minimum(1 - 3 * error, 0.95))),
        "s.e. of the rule's ratio above 1%": int(np.sum(error > _KNOWN)),
        "best weight saves 1%": int(np.sum(room < 0.99)),
        "best weight saves 5%": int(np.sum(room < 0.95)),
        "V(0) < V(1)": int(np.sum(best < 0.5)),
        "w* below 0": int(np.sum(best < 0)),
        "w* above 1": int(np.sum(best > 1)),
        "not resolved, rule above by 2 s.e.": sum(_is_above(row, 2) for row in others),
        "not resolved, rule above by 2 s.e. and 1%": sum(
            _is_above(row, 2) and row["rule"] > 1.01 for row in others
        ),
    }


def _is_above(row: Row, errors: float) -> bool:
    return bool(row["rule"] > 1 + errors * row["rule_sem"] + _ROUNDING)


def agreement(rows: Sequence[Row]) -> list[Row]:
    """How resolved figures compare with closed forms, where rewards are 0/1 and policies uniform.

    Returns:
      For V(0), V(1) and w* the number of cells, the root mean square of
      z = (estimate - exact) / error, which is 1 for errors that are right, and the largest |z|.
    """
    scores: dict[str, list[float]] = {"v0": [], "v1": [], "best": []}
    for row in rows:
        if row["law"] != "bernoulli" or row["logit_noise"] or not row["resolved"]:
            continue
        right = round(row["num_arms"] * row["law_parameter"])
        v0, v1, square = (
            exact_moments(
                partial(advantages, k=row["k"]),
                group_size=row["group_size"],
                success_rate=right / row["num_arms"],
                right_arms=right,
                wrong_arms=row["num_arms"] - right,
            )[0]
            for advantages in (
                estimators.pkpo_loo_minus_one,
                estimators.maxpo,
                estimators.leave_two_out_baseline,
            )
        )
        exact = {"v0": v0, "v1": v1, "best": (v0 + square - v1) / (2 * square)}
        for name, value in exact.items():
            scores[name].append((row[name] - value) / row[f"{name}_sem"])
    return [
        {
            "figure": name,
            "cells": len(z),
            "rms z": float(np.sqrt(np.mean(np.square(z)))),
            "largest |z|": float(np.abs(z).max()),
        }
        for name, z in scores.items()
        if z
    ]


def above(rows: Sequence[Row]) -> list[Row]:
    """The cells where the rule is above the better end by more than 2 standard errors."""
    names = ("resolved", "num_arms", "law", "law_parameter", "logit_noise", "group_size", "k")
    return [
        {name: row[name] for name in (*names, "best", "rule", "rule_sem")}
        for row in rows
        if _is_above(row, 2)
    ]


def table(rows: Sequence[Row]) -> list[Row]:
    """Quantiles over resolved cells, by k and by how many samples share an action."""
    kinds: Mapping[str, Callable[[Row], bool]] = {
        "1": lambda row: row["k"] == 1,
        "2..N/4": lambda row: 1 < row["k"] <= row["group_size"] / 4,
        "N/4..N-2": lambda row: max(1, row["group_size"] / 4) < row["k"] < row["group_size"] - 1,
        "N-1": lambda row: row["k"] == row["group_size"] - 1,
    }
    lines = []
    for kind, matches in kinds.items():
        for low, high in _SHARING:
            cells = [
                row
                for row in rows
                if row["resolved"] and matches(row) and low <= row["sharing"] < high
            ]
            if not cells:
                continue
            best, room, rule = (
                np.array([row[name] for row in cells]) for name in ("best", "headroom", "rule")
            )
            lines.append(
                {
                    "k": kind,
                    "N sum p^2": _between(low, high),
                    "cells": len(cells),
                    "w*": float(np.median(best)),
                    "best w": float(np.median(room)),
                    "best w, 5%": float(np.quantile(room, 0.05)),
                    "past updates": float(np.median(rule)),
                    "5%": float(np.quantile(rule, 0.05)),
                    "95%": float(np.quantile(rule, 0.95)),
                }
            )
    return lines


def certificates(config: ConfigDict) -> list[Row]:
    """Lower bounds on the worst ratio of every rule that sees the group alone."""
    rows = []
    for n, k in config.certificate.pairs:
        bound, attained = count_baselines.certificate(n, k, config.certificate.success_rates)
        rows.append({"N": n, "k": k, "at least": bound, "attained": attained})
    return rows


def figure(rows: Sequence[Row], group_size: int) -> Figure:
    """What the best weight saves for 0/1 rewards, and what past updates save of it everywhere.

    Left, in closed form, the limit of infinitely many arms: lighter is more, and the line is where
    weights 0 and 1 have the same variance. Right, the resolved cells whose ratio is known to 1%,
    with bars of two standard errors.

    Args:
      rows: Measured cells.
      group_size: N of the left panel.
    """
    drawn = Figure(figsize=(WIDTH, 5), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_map(left, group_size)
    known = [row for row in rows if row["resolved"] and row["rule_sem"] <= _KNOWN]
    _draw_cells(right, known)
    return drawn


def _draw_map(axis: Any, n: int) -> None:
    rates = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ks = range(1, n)
    saved, best = np.zeros((2, len(rates), len(ks)))
    for line, rate in enumerate(rates):
        for column, k in enumerate(ks):
            guess = count_baselines.leave_two_out(n, k)
            w = count_baselines.best_weight(group_size=n, k=k, success_rate=rate)
            v0, v1, least = (
                count_baselines.variance(x * guess, group_size=n, k=k, success_rate=rate)
                for x in (0.0, 1.0, np.clip(w, 0, 1))
            )
            best[line, column] = w
            saved[line, column] = 100 * (1 - least / min(v0, v1))
    columns, lines = np.arange(len(ks)), np.arange(len(rates))
    axis.pcolormesh(columns, lines, saved, cmap="cividis", vmin=0)
    for color, width in (("white", 4), ("black", 2)):
        axis.contour(columns, lines, best, levels=[0.5], colors=color, linewidths=width)
    for (line, column), value in np.ndenumerate(saved):
        axis.text(
            column,
            line,
            f"{value:.0f}" if value >= 0.5 else "·",
            color="white" if value < 0.55 * saved.max() else "black",
            fontsize=8,
            ha="center",
            va="center",
        )
    axis.set_xticks(columns, [str(k) for k in ks])
    axis.set_yticks(lines, [f"{rate:g}" for rate in rates])
    axis.set_xlabel(f"k   (N = {n})")
    axis.set_ylabel("success rate, 0/1 rewards")
    axis.set_title(
        "% of variance that the best weight saves over the better of 0 and 1\n"
        "(many arms; on the line 0 and 1 are equal, above it 1 is better)",
        loc="left",
        fontsize=10,
    )


def _draw_cells(axis: Any, rows: Sequence[Row]) -> None:
    styles = (("o", "#1f4e9c", "white"), ("s", "#59a14f", "#59a14f"), ("^", "black", "black"))
    for (low, high), (marker, color, face) in zip(_SHARING, styles, strict=True):
        cells = [row for row in rows if low <= row["sharing"] < high]
        axis.errorbar(
            [row["headroom"] for row in cells],
            [row["rule"] for row in cells],
            yerr=[2 * row["rule_sem"] for row in cells],
            linestyle="",
            marker=marker,
            markersize=4.5,
            color=color,
            markerfacecolor=face,
            elinewidth=0.7,
            ecolor="#9a9a9a",
            label=f"N Σp² {_between(low, high)}",
        )
    axis.axhline(1, color="black", linewidth=1)
    axis.axline((1, 1), slope=1, color="black", linewidth=1, linestyle=":")
    axis.set_xlabel("V(best constant weight in [0, 1]) / min(V(0), V(1))")
    axis.set_ylabel("V(weight of past updates) / min(V(0), V(1))")
    axis.set_title(
        f"{len(rows)} cells; above the line: worse than 0 and 1,\n"
        "on the dotted one: all that a constant can save",
        loc="left",
        fontsize=10,
    )
    tidy(axis, margin=0.05)
    axis.legend(frameon=False, title="samples that share an action")


def _between(low: float, high: float) -> str:
    if high == np.inf:
        return f"> {low:g}"
    return f"< {high:g}" if low == 0 else f"{low:g}..{high:g}"


def _error_over_groups(samples: np.ndarray) -> float:
    """Standard error of the mean of `[C, M]` over the groups drawn, the bandits being fixed."""
    return float(np.sqrt(np.mean(samples.var(axis=1, ddof=1)) / samples.size))


def _measure(key: jax.Array, *, config: ConfigDict, fields: Mapping[str, Any]) -> list[Row]:
    bandit_key, sample_key, rule_key = jax.random.split(key, 3)
    bandits = variance_points.make_bandits(
        bandit_key, {**fields, "arms": "quantiles", "logit_tilt": 0.0}, config.bandits
    )
    n = fields["group_size"]
    ks = ks_for(n)
    found = inner_products(
        sample_key, bandits, jnp.array(ks, jnp.float32), group_size=n, groups=config.groups
    )
    rule = Rule(**config.rule)
    half = config.groups // 2

    def pools(x: jax.Array) -> jax.Array:
        """[C, Q, M] to [Q, 2, C M / 2]."""
        x = x.reshape(*x.shape[:2], 2, half)
        return x.transpose(1, 2, 0, 3).reshape(len(ks), 2, -1)

    weights = past_weights(rule_key, pools(found.cross), pools(found.square), rule=rule)
    first, second = (np.asarray(x, np.float64) for x in weights)
    improvement, cross, square, signal = (np.asarray(x, np.float64) for x in found)
    sharing = float(n * jnp.mean(jnp.sum(jax.nn.softmax(bandits.logits) ** 2, axis=-1)))
    return [
        {
            **fields,
            "k": k,
            "sharing": sharing,
            **summarize(
                improvement[:, i],
                cross[:, i],
                square[:, i],
                signal[:, i],
                list(zip(first[i], second[i], strict=True)),
            ),
        }
        for i, k in enumerate(ks)
    ]
