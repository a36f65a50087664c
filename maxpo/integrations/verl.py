r"""The estimator `maxpo` in verl's registry.

verl imports the modules named in an environment variable wherever it runs, and they register:

    VERL_USE_EXTERNAL_MODULES=maxpo.integrations.verl python -m verl.trainer.main_ppo \
        algorithm.adv_estimator=maxpo +algorithm.maxpo_k=4 \
        actor_rollout_ref.rollout.n=16 actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum ...

Scale. With `loss_agg_mode=seq-mean-token-sum` verl's loss is the mean over samples of the sum over
tokens, for which the advantages are made. Its default "token-mean" divides by the number of tokens
in the batch instead. `norm_adv_by_std_in_grpo` has no effect here.

`docs/integrations.md` says what verl's other defaults do, and what an agent loop with several
outputs for each rollout needs.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maxpo.integrations import host

if TYPE_CHECKING:
    import torch

__all__ = ["maxpo_advantage"]


def maxpo_advantage(
    token_level_rewards: "torch.Tensor",
    response_mask: "torch.Tensor",
    index: np.ndarray | None = None,
    config: Any = None,
    keys: Sequence[str] | None = None,
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
      keys: `[B]`, the keys of verl's v1 trainer, `{uid}_{session}_{output}`. Outputs of one session
        are then one sample, as they are for verl's own GRPO: its reward is that of the last output,
        and all of them get its advantage. Without keys each row is a sample.

    Returns:
      Advantages and returns, one tensor `[B, T]` as float32 on the device of the rewards, for a
      loss that is a mean over samples of the sum over tokens.

    Raises:
      ValueError: If there is no k or no index, no group has more than k samples, or a key is not
        of that form.
    """
    import torch

    k = None if config is None else config.get("maxpo_k")
    if k is None:
        raise ValueError("maxpo: expected k in verl's config, as in +algorithm.maxpo_k=4")
    if index is None or len(index) != len(token_level_rewards):
        raise ValueError(
            f"maxpo: expected an index of {len(token_level_rewards)} prompts, one for each sample, "
            f"got {'none' if index is None else len(index)}"
        )
    if keys is None:
        rows = sample_of = np.arange(len(index))
    else:
        rows, sample_of = _last_outputs(keys, len(index))
    prompts = np.asarray(index)[rows].tolist()
    with torch.no_grad():
        rewards = token_level_rewards.sum(dim=-1, dtype=torch.float32).cpu().numpy()
        by_row = host.maxpo(rewards[rows], k, groups=prompts)[sample_of]
        largest = max(Counter(prompts).values(), default=0)
        if largest <= k:
            raise ValueError(
                f"maxpo: expected k <= N - 1 in some group, got k = {k} and at most N = {largest} "
                "samples; N is verl's rollout.n"
            )
        advantages = torch.as_tensor(by_row).to(token_level_rewards.device)
        advantages = advantages.unsqueeze(-1) * response_mask
    return advantages, advantages


def _last_outputs(keys: Sequence[str], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The row of each session's last output, and the session of each row."""
    if len(keys) != batch:
        raise ValueError(f"maxpo: expected {batch} keys, one for each row, got {len(keys)}")
    sessions: dict[str, int] = {}
    last: list[tuple[int, int]] = []  # The last turn of each session, by output and row.
    session_of = np.empty(batch, int)
    for row, key in enumerate(keys):
        session, _, output = key.rpartition("_")
        if not (session and output.isdecimal()):
            raise ValueError(f"maxpo: expected keys UID_SESSION_OUTPUT, got {key!r}")
        number = session_of[row] = sessions.setdefault(session, len(last))
        if number == len(last):
            last.append((int(output), row))
        last[number] = max(last[number], (int(output), row))
    return np.array([row for _, row in last], int), session_of


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
