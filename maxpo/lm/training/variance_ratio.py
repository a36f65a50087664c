"""Does centering pay? The variance of `maxpo` over that of `pkpo_loo_minus_one`, while training.

Both estimate the same gradient without bias. Their ratio is predicted from the rewards of each
step, and measured now and then from gradients of single groups.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maxpo import estimators
from maxpo.adaptive_k import AdaptiveK
from maxpo.lm.training.gradient_variance import GroupGradient, pair_variances, ratio_of_means
from maxpo.lm.training.rollouts import Rollouts
from maxpo.lm.training.update import Batch
from maxpo.methods import K, Method, k_schedule

__all__ = ["Measurement", "VarianceRatio", "has_variance_ratio", "make_variance_ratio"]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How the real ratio is measured.

    Attributes:
      every: Steps between two measurements.
      prompts: G, each with two groups.
      gradient: Of the loss of one group.
    """

    every: int
    prompts: int
    gradient: GroupGradient


@dataclasses.dataclass(frozen=True)
class VarianceRatio:
    """The two ratios at the k of a method.

    Attributes:
      k: The method's, which may change from step to step.
      measurement: None: the ratio is only predicted.
    """

    k: K
    measurement: Measurement | None = None

    def predicted(self, step: int, groups: Rollouts) -> dict[str, float]:
        """The ratio that the rewards of a step predict.

        `sum A_i^2` of `maxpo` over that of `pkpo_loo_minus_one`, over all samples that count: where
        scores of different samples are orthogonal, the mean gradient is 0 beside its noise, so that
        nothing is to be subtracted, and the squared norm of a group's gradient is the sum of
        `A_i^2` times that of the score of sample i. NaN where no sample has an advantage.
        """
        centered, other = self._advantages(step, groups.rewards, groups.valid)
        total = np.sum(np.square(other, dtype=np.float64), where=groups.where)
        part = np.sum(np.square(centered, dtype=np.float64), where=groups.where)
        return {"predicted_variance_ratio": part / total if total else np.nan}

    def is_due(self, step: int) -> bool:
        """Whether the ratio is to be measured before the update of a step."""
        return self.measurement is not None and step % self.measurement.every == 0

    def measured(self, params: nnx.State, step: int, pairs: Batch) -> dict[str, float]:
        """The traces of both covariances, their ratio and its standard error over prompts.

        Args:
          params: The parameters that the groups were sampled with.
          step: The step.
          pairs: As for `pair_variances`, without advantages.
        """
        assert self.measurement is not None
        variances = [
            pair_variances(self.measurement.gradient, params, pairs._replace(advantages=advantages))
            for advantages in self._advantages(step, pairs.rewards, pairs.valid)
        ]
        ratio = ratio_of_means(*variances)
        return {
            "gradient_variance_maxpo": variances[0].mean(),
            "gradient_variance_pkpo_loo_minus_one": variances[1].mean(),
            "variance_ratio": ratio.value,
            "variance_ratio_sem": ratio.error,
        }

    def _advantages(self, step: int, rewards: Any, valid: Any) -> tuple[Any, Any]:
        """Of both estimators, `[P, N]` each."""
        k = self.k(step - 1) if callable(self.k) else self.k
        return jax.device_get(_advantages(rewards, valid, jnp.float32(k)))


def has_variance_ratio(method: Method) -> bool:
    """Whether a method has one k for all groups, above 1: at 1 there is nothing to compare."""
    return _fixed_k(method) is not None


def _fixed_k(method: Method) -> tuple[float, float] | None:
    k = method.k
    return None if k is None or isinstance(k, AdaptiveK) or max(k) <= 1 else k


def make_variance_ratio(
    method: Method, steps: int, measurement: Measurement | None = None
) -> VarianceRatio | None:
    """That of a method over the steps of its run; None if it has none."""
    k = _fixed_k(method)
    return None if k is None else VarianceRatio(k_schedule(*k, steps), measurement)


# A traced k: one program serves all methods and steps.
@jax.jit
def _advantages(rewards: jax.Array, valid: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (
        estimators.maxpo(rewards, k, where=valid),
        estimators.pkpo_loo_minus_one(rewards, k, where=valid),
    )
