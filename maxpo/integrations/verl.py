r"""The estimator `maxpo` in verl's registry.

verl imports the modules named in an environment variable wherever it runs, and they register:

    VERL_USE_EXTERNAL_MODULES=maxpo.integrations.verl python -m verl.trainer.main_ppo \
        algorithm.adv_estimator=maxpo +algorithm.maxpo_k=4 \
        actor_rollout_ref.rollout.n=16 actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum ...

Scale. With `loss_agg_mode=seq-mean-token-sum` verl's loss is the mean over samples of the sum over
tokens, for which the advantages are made. Its default "token-mean" divides by the number of tokens
in the batch instead. `norm_adv_by_std_in_grpo` has no effect here.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from maxpo.integrations import numpy as host

if TYPE_CHECKING:
    import torch


def maxpo_advantage(
    token_level_rewards: "torch.Tensor",
    response_mask: "torch.Tensor",
    index: np.ndarray | None = None,
    config: Any = None,
    **_: Any,
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """MaxPO's advantages as verl calls an estimator; see `maxpo.estimators.maxpo`.

        A_it = mask_it maxpo(r, k)_i          r_i = sum_t token_level_rewards_it

    in each group of samples with the same `index`. Groups need not be of one size, nor be side by
    side; one of fewer than k + 1 samples gets 0.

    See "On Advantage Estimates for Max@K Policy Gradients" (https://arxiv.org/abs/2606.06080).

    Args:
      token_level_rewards: `[B, T]`, 0 outside of the responses.
      response_mask: `[B, T]`, 1 at the tokens of the responses.
      index: `[B]`, the prompt that each sample belongs to, in verl its `uid`.
      config: verl's `algorithm` section; its `maxpo_k` is k, 1 <= k <= N - 1.

    Returns:
      Advantages and returns, one tensor `[B, T]` as float32 on the device of the rewards, for a
      loss that is a mean over samples of the sum over tokens.

    Raises:
      ValueError: If there is no k or no index, or no group has more than k samples.
    """
    import torch

    k = None if config is None else config.get("maxpo_k")
    if k is None:
        raise ValueError("maxpo: expected k in verl's config, as in +algorithm.maxpo_k=4.")
    if index is None or len(index) != len(token_level_rewards):
        raise ValueError(
            f"maxpo: expected an index of {len(token_level_rewards)} prompts, one for each sample, "
            f"got {'none' if index is None else len(index)}."
        )
    with torch.no_grad():
        rewards = token_level_rewards.sum(dim=-1, dtype=torch.float32).cpu().numpy()
        advantages = torch.as_tensor(_by_group(rewards, index, k))
        advantages = advantages.to(token_level_rewards.device).unsqueeze(-1) * response_mask
    return advantages, advantages


def _by_group(rewards: np.ndarray, index: np.ndarray, k: float) -> np.ndarray:
    _, group, sizes = np.unique(np.asarray(index), return_inverse=True, return_counts=True)
    largest = int(sizes.max(initial=0))
    if largest <= k:
        raise ValueError(
            f"maxpo: expected k <= N - 1 in some group, got k = {k} and at most N = {largest} "
            "samples; N is verl's rollout.n."
        )
    order = np.argsort(group, kind="stable")
    position = np.empty(len(group), int)
    position[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded, where = np.zeros((len(sizes), largest), rewards.dtype), None
    padded[group, position] = rewards
    if sizes.min() < largest:
        where = np.arange(largest) < sizes[:, None]
    return host.maxpo(padded, k, where=where)[group, position]


def _register() -> None:
    try:
        from verl.trainer.ppo.core_algos import register_adv_est
    except ModuleNotFoundError as error:
        # The function is of use without verl, too; a broken verl is to be seen.
        if error.name != "verl":
            raise
        return
    register_adv_est("maxpo")(maxpo_advantage)


_register()
