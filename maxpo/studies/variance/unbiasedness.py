"""Expected gradients of every estimator, exactly, next to the gradients they are meant to be.

All groups of N actions of small softmax policies are enumerated in float64: nothing is sampled, so
the numbers have no error. Besides the estimators as published there are those that come out when
a trainer centers or standardizes the advantages it is given, as many do.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maxpo import estimators
from maxpo.bandits import task as bandit
from maxpo.plotting import WIDTH, tidy

__all__ = [
    "CASES",
    "VARIANTS",
    "AtK",
    "Case",
    "Variant",
    "compare",
    "expected_gradient",
    "figure",
    "objective_gradient",
    "table",
]

AtK = Callable[..., jax.Array]
"""(rewards `[..., N]`, k) to advantages `[..., N]`."""


class Case(NamedTuple):
    """Prompts with a policy each; the objective is the mean over them.

    Attributes:
      logits: `[P, A]`, parameters of the policies.
      rewards: `[P, A]`, what each arm pays.
    """

    logits: np.ndarray
    rewards: np.ndarray


class Variant(NamedTuple):
    """An estimator as it is used.

    Attributes:
      advantages: From rewards and k.
      of_mean: Whether it is for J_1, whatever k is.
      left_out: k is at most N - left_out.
      binary: Whether only 0/1 rewards make sense.
    """

    advantages: AtK
    of_mean: bool = False
    left_out: int = 0
    binary: bool = False


def _centered(advantages: AtK) -> AtK:
    def function(rewards: jax.Array, k: int) -> jax.Array:
        values = advantages(rewards, k)
        return values - jnp.mean(values, axis=-1, keepdims=True)

    return function


def _standardised(advantages: AtK) -> AtK:
    return lambda rewards, k: estimators.grpo(advantages(rewards, k))


def _mean(function: estimators.Estimator) -> AtK:
    return lambda rewards, k: function(rewards)


def _l_statistic(rewards: jax.Array, k: int) -> jax.Array:
    return estimators.l_statistic(rewards, [0.0] * (k - 1) + [1.0])


VARIANTS: Mapping[str, Variant] = {
    "reinforce": Variant(_mean(estimators.reinforce), of_mean=True),
    "rloo": Variant(_mean(estimators.rloo), of_mean=True),
    "dr_grpo": Variant(_mean(estimators.dr_grpo), of_mean=True),
    "grpo": Variant(_mean(estimators.grpo), of_mean=True),
    "max_rl": Variant(_mean(estimators.max_rl), of_mean=True, binary=True),
    "tail_rl": Variant(_mean(estimators.tail_rl), of_mean=True),
    "pkpo": Variant(estimators.pkpo),
    "pkpo_loo": Variant(estimators.pkpo_loo, left_out=1),
    "pkpo_loo_minus_one": Variant(estimators.pkpo_loo_minus_one),
    "maxpo": Variant(estimators.maxpo, left_out=1),
    "reweighted_rloo": Variant(estimators.reweighted_rloo),
    "l_statistic, best of k": Variant(_l_statistic, left_out=1),
    "canonical": Variant(estimators.canonical),
    "pass_at_k_training": Variant(estimators.pass_at_k_training, binary=True),
    "pkpo, mean-centered": Variant(_centered(estimators.pkpo)),
    "pkpo_loo_minus_one, mean-centered": Variant(_centered(estimators.pkpo_loo_minus_one)),
    "pkpo_loo_minus_one, standardized": Variant(_standardised(estimators.pkpo_loo_minus_one)),
    "maxpo, standardized": Variant(_standardised(estimators.maxpo), left_out=1),
}

CASES: Mapping[str, Case] = {
    # One prompt, three arms of different worth.
    "graded": Case(np.array([[0.3, -0.5, 0.9]]), np.array([[0.2, 1.7, -0.4]])),
    # Two prompts with 0/1 rewards, right with probability 0.79 and 0.11: one direction for both
    # prompts together, which rescaling the groups by what they hold can turn.
    "easy and hard": Case(
        np.array([[2.0, 0.0, 0.0], [-1.4, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0]] * 2)
    ),
}


def expected_gradient(
    advantages: Callable[[jax.Array], jax.Array], case: Case, group_size: int
) -> np.ndarray:
    """E[(1/N) sum_i A_i grad log pi(y_i)], averaged over prompts, by enumerating all A^N groups.

    Args:
      advantages: Rewards `[..., N]` to advantages `[..., N]`.
      case: P prompts with A arms.
      group_size: N.

    Returns:
      `[P, A]` in float64: the gradient with respect to the logits.
    """
    num_prompts, num_arms = case.logits.shape
    actions = np.array(list(itertools.product(range(num_arms), repeat=group_size)))
    gradient = np.zeros(case.logits.shape)
    for prompt, (logits, rewards) in enumerate(zip(*case, strict=True)):
        p = np.exp(logits) / np.exp(logits).sum()
        scores = np.eye(num_arms)[actions] - p
        with jax.enable_x64(True):
            weights = np.asarray(advantages(jnp.asarray(rewards[actions]))) / group_size
        odds = np.prod(p[actions], axis=-1)
        gradient[prompt] = np.einsum("b,bn,bna->a", odds, weights, scores) / num_prompts
    return gradient


def objective_gradient(case: Case, k: ArrayLike) -> np.ndarray:
    """Gradient of J_k, averaged over prompts, from the closed form; `[P, A]` in float64."""

    def objective(logits: jax.Array) -> jax.Array:
        return jnp.mean(bandit.expected_max(jax.nn.softmax(logits), jnp.asarray(case.rewards), k))

    with jax.enable_x64(True):
        return np.asarray(jax.grad(objective)(jnp.asarray(case.logits)))


def compare(gradient: np.ndarray, target: np.ndarray) -> tuple[float, float | None]:
    """Ratio of the norms and cosine of the angle; a gradient that is 0 to rounding has no angle."""
    norm, target_norm = np.linalg.norm(gradient), np.linalg.norm(target)
    if norm < 1e-12 * target_norm:
        return 0.0, None
    cosine = np.sum(gradient * target) / (norm * target_norm)
    return float(norm / target_norm), float(np.clip(cosine, -1, 1))


def table(group_size: int, ks: Sequence[int]) -> list[dict[str, Any]]:
    """Ratio of norms and cosine of every variant's expected gradient with that of its objective.

    Args:
      group_size: N.
      ks: Each with 2 <= k <= N. Variants that need more samples are left out there.

    Returns:
      A row for each variant and k, with `CASE ratio` and `CASE cosine` for each case that it is
      made for.
    """
    rows = []
    for name, variant in VARIANTS.items():
        for k in (1,) if variant.of_mean else ks:
            if k > group_size - variant.left_out:
                continue
            row: dict[str, Any] = {"estimator": name, "objective": f"J_{k}", "k": k}
            for case_name, case in CASES.items():
                if variant.binary and not np.all(np.isin(case.rewards, (0, 1))):
                    continue
                gradient = expected_gradient(partial(variant.advantages, k=k), case, group_size)
                norm_ratio, cosine = compare(gradient, objective_gradient(case, k))
                row |= {f"{case_name} ratio": norm_ratio, f"{case_name} cosine": cosine}
            rows.append(row)
    return rows


# The unbiased ones are all the same line; maxpo stands for them.
_LINES = {
    "maxpo": ("maxpo, pkpo, pkpo_loo, pkpo_loo_minus_one: unbiased", "#1f4e9c", "-", ""),
    "pkpo, mean-centered": ("pkpo, mean-centered: $1 - k/N$", "#59a14f", "--", "o"),
    "pkpo_loo_minus_one, mean-centered": (
        "pkpo_loo_minus_one, mean-centered: biased",
        "#e15759",
        "-.",
        "s",
    ),
    "pkpo_loo_minus_one, standardized": ("pkpo_loo_minus_one, standardized", "#4d4d4d", ":", "^"),
    "maxpo, standardized": ("maxpo, standardized", "#9a9a9a", (0, (5, 1, 1, 1)), "v"),
}


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What centering and standardizing do: norm and direction over k, a column for each case."""
    drawn = Figure(figsize=(WIDTH, 6.5), layout="constrained")
    axes = drawn.subplots(2, len(CASES), sharex=True, sharey="row", squeeze=False)
    for column, case in enumerate(CASES):
        for axis, metric in zip(axes[:, column], ("ratio", "cosine"), strict=True):
            for name, (label, color, dashes, marker) in _LINES.items():
                points = [r for r in rows if r["estimator"] == name]
                points = [r for r in points if r[f"{case} {metric}"] is not None]
                axis.plot(
                    [r["k"] for r in points],
                    [r[f"{case} {metric}"] for r in points],
                    label=label,
                    color=color,
                    linestyle=dashes,
                    marker=marker,
                    linewidth=2.4 if name == "maxpo" else 1.5,
                )
            tidy(axis, margin=0.05)
        axes[0, column].set_title(f"prompts: {case}", loc="left", fontsize=11)
        axes[-1, column].set_xlabel("k")
        axes[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("norm of the expected gradient\nover that of grad $J_k$")
    axes[1, 0].set_ylabel("cosine of the angle\nbetween them")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return drawn
