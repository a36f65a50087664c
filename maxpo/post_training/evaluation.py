"""How good the best of k is on held-out problems, for every k, with errors."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from maxpo import max_at_k, pass_at_k
from maxpo.post_training.rollouts import Clock, Sample, sample_and_score
from maxpo.post_training.settings import Settings, powers_up_to
from maxpo.verification import Scores, VerifierPool


class Curve(NamedTuple):
    """A value for every k.

    Attributes:
      k: `[K]`.
      value: `[K]`, means over problems and seeds.
      error: `[K]`, their standard errors.
    """

    k: tuple[int, ...]
    value: np.ndarray
    error: np.ndarray


def held_out_scores(
    settings: Settings,
    sample: Sample,
    pool: VerifierPool,
    params: nnx.State,
    key: jax.Array,
    clock: Clock,
) -> Scores:
    """Scores `[P, n]` of n samples of every held-out problem.

    The counts of failures are those of all samples that were verified, to which the last batch may
    add some problems once more.
    """
    count, size = len(settings.held_out.problems), settings.config.evaluation.prompts
    batches = -(-count // size)
    # The last batch is filled up with problems that it has already, for one shape only.
    problems = settings.held_out.take(np.arange(batches * size) % count)
    rollouts = sample_and_score(
        settings, sample, pool, params, problems, key, batches=batches, clock=clock
    )
    scores = rollouts.scores
    return scores._replace(rewards=scores.rewards[:count], valid=scores.valid[:count])


def best_of_k(rewards: np.ndarray, *, binary: bool) -> np.ndarray:
    """Unbiased pass@k (`binary`) or max@k of every problem: `[..., n]` to `[..., K]`."""
    estimate = pass_at_k if binary else max_at_k
    ks = powers_up_to(rewards.shape[-1])
    return np.stack([np.asarray(estimate(rewards, k), np.float64) for k in ks], axis=-1)


def curve(rewards: np.ndarray, *, binary: bool, minus: np.ndarray | None = None) -> Curve:
    """The curve of several runs on the same problems.

    Standard errors are those of a mean over problems and seeds that both are random: with x the
    problems' values, S seeds and P problems,

        Var = Var_p(mean_s x) / P + (Var_s(mean_p x) / S - Var(residuals) / (S P))^+

    where the residuals are what neither a seed nor a problem explains. With one seed the second
    term is unknown, and the error only that of the problems.

    Args:
      rewards: `[S, P, n]`.
      binary: Whether they are 0/1.
      minus: `[P, n]` of another model on the same problems, to get the curve of the differences.
        Problems that are hard for both cancel, so its errors are smaller than the curves' own.
    """
    values = best_of_k(rewards, binary=binary)
    if minus is not None:
        values = values - best_of_k(minus, binary=binary)
    S, P = values.shape[:2]
    mean = values.mean(axis=(0, 1))
    by_problem, by_seed = values.mean(axis=0), values.mean(axis=1)
    variance = by_problem.var(axis=0, ddof=1) / P if P > 1 else np.full(mean.shape, np.nan)
    if S > 1 and P > 1:
        residuals = values - by_problem - by_seed[:, None] + mean
        unexplained = np.sum(residuals**2, axis=(0, 1)) / ((S - 1) * (P - 1) * S * P)
        variance += np.maximum(by_seed.var(axis=0, ddof=1) / S - unexplained, 0)
    return Curve(powers_up_to(rewards.shape[-1]), mean, np.sqrt(variance))
