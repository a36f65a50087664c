"""What callers from Python hand over: a policy, and a reward."""

import contextlib
import itertools
from collections.abc import Iterator

from flax import nnx

from maxpo.lm.model.policy import trainable
from maxpo.lm.tasks.rewards import GroupReward, Reward, RewardFunction
from maxpo.lm.tasks.text import load_verifier
from maxpo.lm.tasks.tokenizers import Tokenizer
from maxpo.lm.tasks.verification import VerifierPool
from maxpo.lm.training.rollouts import Verify

__all__ = ["open_verifier", "split_policy"]


def split_policy(
    policy: nnx.Module, tokenizer: Tokenizer
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A policy's structure, what is trained of it, and what is not, see `trainable`.

    Raises:
      ValueError: If it has other variables than parameters, or fewer tokens than the tokenizer.
    """
    graph, params, frozen = trainable(policy)
    for path, variable in itertools.chain(nnx.to_flat_state(params), nnx.to_flat_state(frozen)):
        if not isinstance(variable, nnx.Param):
            raise ValueError(
                "policy: expected no variables but nnx.Param, got "
                f"{type(variable).__name__} at {'.'.join(map(str, path))}"
            )
    size = getattr(getattr(policy, "config", None), "vocab_size", tokenizer.vocab_size)
    if size < tokenizer.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the policy's {size} tokens, got {tokenizer.vocab_size}"
        )
    return graph, params, frozen


@contextlib.contextmanager
def open_verifier(
    reward: Reward | GroupReward | str, workers: int, time_limit: float
) -> Iterator[Verify]:
    """What scores completions by a reward, in a `with` block.

    Args:
      reward: A function of a problem and a completion, a `group_reward`, or "module:function".
      workers: Processes that score; 0: this one.
      time_limit: Seconds for a completion, with `workers`.

    Raises:
      ValueError: If the reward is something else, or one of groups with workers.
    """
    if not callable(reward) and not isinstance(reward, str | GroupReward):
        raise ValueError(f"reward: expected a function or 'module:function', got {reward!r}")
    function = load_verifier(reward) if isinstance(reward, str) else reward
    if not workers:
        yield RewardFunction(function)
        return
    if isinstance(function, GroupReward):
        raise ValueError(
            f"workers: expected 0 for a group_reward, which scores a group at once, got {workers}"
        )
    with VerifierPool(function, workers=workers, time_limit=time_limit) as pool:
        yield pool
