"""How good the best of k is on held-out problems, for every k, with errors."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from maxpo import max_at_k, pass_at_k
from maxpo.lm.model.prompts import Completions
from maxpo.lm.tasks.verification import Scores
from maxpo.lm.training.grading import Grading, deciding, marked
from maxpo.lm.training.problems import EncodedProblems
from maxpo.lm.training.rollouts import Sampler, Timer
from maxpo.order_statistics import powers_up_to

__all__ = ["Curve", "Judge", "Judged", "best_of_k", "curve"]


class Curve(NamedTuple):
    """A value for every k.

    Attributes:
      k: `[K]`.
      value: `[K]`, means over problems and seeds; NaN where there is no problem.
      error: `[K]`, their standard errors.
      problems: How many problems they are means over.
    """

    k: tuple[int, ...]
    value: np.ndarray
    error: np.ndarray
    problems: int

    def at(self, k: int, name: str) -> dict[str, float]:
        """The value of one k, and its standard error under the same name with `_sem`."""
        place = self.k.index(k)
        return {name: float(self.value[place]), f"{name}_sem": float(self.error[place])}


@dataclasses.dataclass
class Judge:
    """Draws and scores n samples of every held-out problem.

    Attributes:
      sampler: Draws n samples of each of `prompts` prompts.
      problems: P held-out problems.
      key: PRNG key, the same at every evaluation: the differences between them are the policy's.
      prompts: How many problems are sampled from at a time.
      grading: What scores mean.
      latest: The step of the last evaluation, and what came of it.
    """

    sampler: Sampler
    problems: EncodedProblems
    key: jax.Array
    prompts: int
    grading: Grading
    latest: "tuple[int, Judged] | None" = None

    def __call__(self, params: nnx.State, step: int) -> "Judged":
        """The evaluation after a step; not done again where it is the last one that was done."""
        if self.latest is None or self.latest[0] != step:
            self.latest = step, self._judge(params)
        return self.latest[1]

    def _judge(self, params: nnx.State) -> "Judged":
        count = len(self.problems.problems)
        batches = -(-count // self.prompts)
        # Those of one width side by side. The last batch is filled up with problems that were there
        # already, so that there is one shape only; what is drawn for them is not scored.
        order = np.argsort(self.problems.buckets, kind="stable")
        filled = self.problems.take(np.resize(order, batches * self.prompts))
        completions, scores = self.sampler(
            params, filled, self.key, batches=batches, timer=Timer(), scored=count
        )
        place = np.argsort(order)
        return Judged(
            jax.tree.map(lambda array: array[place], completions),
            scores.take(place),
        )

    def metrics(self, judged: "Judged") -> dict[str, float]:
        """The points of `curves`, as metrics of a step."""
        found: dict[str, float] = {}
        for name, of in self.curves(judged).items():
            for k in of.k:
                found |= of.at(k, f"eval_{name}_at_{k}")
        return found

    def curves(self, judged: "Judged") -> dict[str, Curve]:
        """Held-out "pass"@k and, where rewards are graded, "max"@k, for k = 1, 2, 4, .. up to n."""
        correct = self.grading.correct(deciding(judged.scores))
        found = {"pass": curve(correct[None], binary=True)}
        if not self.grading.binary:
            found["max"] = curve(marked(judged.scores)[None], binary=False)
        return found


class Judged(NamedTuple):
    """What came of an evaluation.

    Attributes:
      completions: `[P, n, T]`.
      scores: `[P, n]`.
    """

    completions: Completions
    scores: Scores


def best_of_k(rewards: np.ndarray, *, binary: bool) -> np.ndarray:
    """Unbiased pass@k (`binary`) or max@k of every problem, for every k.

    A failed sample, whose reward is NaN, uses up one of the k tries. It is not correct, so it
    counts in pass@k as a wrong answer. It has no reward, so max@k is the best of the scored ones
    among k tries, given that there is one:

        max@k = mean of the maximum over those k-subsets that hold a scored sample

    With k = 1 that is the mean of the scored samples.

    Args:
      rewards: `[..., n]`.
      binary: Whether they are 0/1.

    Returns:
      `[..., K]`; NaN for max@k of a problem all of whose samples failed.

    >>> best_of_k(np.array([-0.1, -0.2, np.nan, -0.4]), binary=False).round(3).tolist()
    [-0.233, -0.183, -0.1]
    """
    n = rewards.shape[-1]
    if binary:
        values = [np.asarray(pass_at_k(rewards, k), np.float64) for k in powers_up_to(n)]
        return np.stack(values, axis=-1)
    failed = np.isnan(rewards)
    count = failed.sum(axis=-1)
    lowest = np.min(rewards, axis=-1, where=~failed, initial=np.inf)
    lowest = np.where(count < n, lowest, 0)
    # With the lowest score in their place failures change the maximum of no subset but those that
    # hold nothing else.
    filled = np.where(failed, lowest[..., None], rewards)
    values = []
    for k in powers_up_to(n):
        value = np.asarray(max_at_k(filled, k), np.float64)
        drawn = np.arange(k)
        nothing = np.prod(np.maximum(count[..., None] - drawn, 0) / (n - drawn), axis=-1)
        scored = np.where(count < n, 1 - nothing, np.nan)
        values.append(np.where(nothing == 0, value, lowest + (value - lowest) / scored))
    return np.stack(values, axis=-1)


def curve(rewards: np.ndarray, *, binary: bool, minus: np.ndarray | None = None) -> Curve:
    """The curve of several runs on the same problems.

    Standard errors are those of a mean over problems and seeds that both are random: with x the
    problems' values, S seeds and P problems,

        Var = Var_p(mean_s x) / P + (Var_s(mean_p x) / S - Var(residuals) / (S P))^+

    where the residuals are what neither a seed nor a problem explains. With one seed the second
    term is unknown, and the error only that of the problems.

    Problems without a value under some seed, because all of their samples failed, are left out.

    Args:
      rewards: `[S, P, n]`, NaN where a sample failed.
      binary: Whether they are 0/1.
      minus: `[P, n]` of another model on the same problems, to get the curve of the differences.
        Problems that are hard for both cancel, so its errors are smaller than the curves' own.
    """
    values = best_of_k(rewards, binary=binary)
    if minus is not None:
        values = values - best_of_k(minus, binary=binary)
    values = values[:, ~np.isnan(values).any(axis=(0, 2))]
    S, P, K = values.shape
    if not P:
        unknown = np.full(K, np.nan)
        return Curve(powers_up_to(rewards.shape[-1]), unknown, unknown, 0)
    mean = values.mean(axis=(0, 1))
    by_problem, by_seed = values.mean(axis=0), values.mean(axis=1)
    variance = by_problem.var(axis=0, ddof=1) / P if P > 1 else np.full(mean.shape, np.nan)
    if S > 1 and P > 1:
        residuals = values - by_problem - by_seed[:, None] + mean
        unexplained = np.sum(residuals**2, axis=(0, 1)) / ((S - 1) * (P - 1) * S * P)
        variance += np.maximum(by_seed.var(axis=0, ddof=1) / S - unexplained, 0)
    return Curve(powers_up_to(rewards.shape[-1]), mean, np.sqrt(variance), P)
