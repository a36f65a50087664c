"""max@k in TRL's `GRPOTrainer`, by a reward function that hands it warped rewards.

    from maxpo.integrations.trl import max_at_k_reward

    trainer = GRPOTrainer(
        model=...,
        reward_funcs=max_at_k_reward(is_right, k=4, num_generations=16),
        args=GRPOConfig(num_generations=16, scale_rewards="none", loss_type="dr_grpo", beta=0.0),
        train_dataset=...,
    )

`GRPOTrainer` has no setting for the advantage, but computes one from each group's rewards:

    A_i = (r_i - mean(r)) / scale

Scale. With `scale_rewards="none"` the advantages inside the trainer are

    A_i = (1 - 1/n) / k * maxpo_i          n scored samples in the group

which is one constant for all groups that are scored as a whole, and
`reward_weights=[k * N / (N - 1)]` makes it 1. `docs/integrations.md` says what the trainer's other
settings do to it; "group" and "batch" divide by a standard deviation and are not max@k's gradient.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maxpo.integrations import host

__all__ = ["RewardFunction", "max_at_k_reward"]

RewardFunction = Callable[..., Sequence[float | None]]


def max_at_k_reward(
    *functions: RewardFunction,
    k: float,
    num_generations: int,
    weights: Sequence[float] | None = None,
) -> RewardFunction:
    """A reward function for TRL whose group-centered rewards are max@k's advantages.

        r~ = rank_warp(sum_f weight_f r_f, k)   for each block of num_generations completions

    k = 1 shifts each group's rewards, and trains as without it. Give it all reward functions whose
    sum is to have the best maximum: warped one by one, the sum would be another objective.

    With TRL's `log_metric` it logs the `mean_reward` and `max_at_k` before the warp, as TRL's own
    reward metrics are those of the warped rewards.

    See "On Advantage Estimates for Max@K Policy Gradients" (https://arxiv.org/abs/2606.06080).

    Args:
      *functions: TRL's reward functions: from the keyword arguments `prompts`, `completions`,
        `completion_ids` and the data's columns to a reward for each completion, None or NaN where
        there is none.
      k: Number of samples whose best counts, 1 <= k <= num_generations - 1.
      num_generations: That of `GRPOConfig`, N; evaluation must use the same.
      weights: One for each function, 1 by default.

    Returns:
      The function. It returns a list of floats in the unit of the rewards, 0 for the lowest of a
      group, and None for a completion that no function scores. A group with fewer than k + 1
      scored completions gets 0.

    Raises:
      TypeError: If a function is not a plain function, such as a reward model or a coroutine.
      ValueError: If k or the number of weights does not fit; and when called, if the completions
        are not whole groups, each of one prompt.

    >>> score = max_at_k_reward(lambda completions, **_: map(len, completions),
    ...                         k=2, num_generations=3)
    >>> score(prompts=["p"] * 3, completions=["a", "bb", "dddd"])
    [0.0, 0.0, 2.0]
    """
    if not functions:
        raise TypeError("max_at_k_reward: expected at least one reward function, got none")
    for function in functions:
        is_model = hasattr(function, "forward") or not callable(function)
        call = function if inspect.isroutine(function) else type(function).__call__
        if is_model or inspect.iscoroutinefunction(call):
            raise TypeError(
                "max_at_k_reward: expected plain functions (call a model or an async function "
                f"inside of one), got {function!r}"
            )
    weights = [1.0] * len(functions) if weights is None else list(weights)
    if len(weights) != len(functions):
        raise ValueError(
            f"max_at_k_reward: expected one weight for each of {len(functions)} functions, got "
            f"{len(weights)}"
        )
    # k > num_generations - 1 is an error here, before anything is sampled.
    host.rank_warp(np.zeros(num_generations), k)

    def reward(
        *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        _check_groups(prompts, num_generations)
        total, scored = np.zeros(len(prompts)), np.zeros(len(prompts), bool)
        for function, weight in zip(functions, weights, strict=True):
            values = list(function(prompts=prompts, completions=completions, **columns))
            if len(values) != len(prompts):
                raise ValueError(
                    f"max_at_k_reward: expected {len(prompts)} rewards, one for each completion, "
                    f"got {len(values)} from {_name(function)}"
                )
            scores = np.array([math.nan if v is None else float(v) for v in values])
            scored |= ~np.isnan(scores)
            total += weight * np.where(np.isnan(scores), 0, scores)
        if np.isinf(total).any():
            raise ValueError("max_at_k_reward: expected finite rewards, got an infinite one")
        groups = total.reshape(-1, num_generations)
        where = scored.reshape(groups.shape)
        warped = host.rank_warp(groups, k, where=where).ravel()
        _log(columns.get("log_metric"), groups, where, k)
        return [float(r) if s else None for r, s in zip(warped, scored, strict=True)]

    # TRL names its metrics by it.
    reward.__name__ = f"max_at_{k:g}_of_" + "_".join(map(_name, functions))
    return reward


def _check_groups(prompts: Sequence[Any], size: int) -> None:
    """TRL holds a group's completions side by side; equal prompts may be in two groups."""
    if len(prompts) % size:
        raise ValueError(
            f"max_at_k_reward: expected whole groups of num_generations = {size} completions, got "
            f"{len(prompts)} completions. In every process per_device_train_batch_size * "
            "steps_per_generation must be a multiple of num_generations, and so must "
            "per_device_eval_batch_size; num_generations_eval must equal it."
        )
    for start in range(0, len(prompts), size):
        if any(prompt != prompts[start] for prompt in prompts[start : start + size]):
            raise ValueError(
                f"max_at_k_reward: expected one prompt in completions {start} to "
                f"{start + size - 1}, got several: num_generations = {size} is not that of "
                "GRPOConfig, or a group is split between processes"
            )


def _log(log_metric: Any, groups: np.ndarray, where: np.ndarray, k: float) -> None:
    whole = where.sum(axis=-1) >= k
    if log_metric is not None and whole.any():
        log_metric("mean_reward", float(groups[where].mean()))
        best = host.max_at_k(groups, k, where=where)
        log_metric("max_at_k", float(best[whole].mean()))


def _name(function: RewardFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)
