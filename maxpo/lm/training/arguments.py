"""What callers from Python hand over: a policy, problems, a reward, and numbers."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.model.policy import trainable
from maxpo.lm.tasks.rewards import GroupReward, Reward, RewardFunction
from maxpo.lm.tasks.text import Problem, Verifier, shown
from maxpo.lm.tasks.tokenizers import Tokenizer
from maxpo.lm.tasks.verification import VerifierPool
from maxpo.lm.tasks.verifiers import check_answer, find_verifier
from maxpo.lm.training.problems import EncodedProblems
from maxpo.lm.training.rollouts import Verify

__all__ = [
    "check_arguments",
    "check_problems",
    "check_room",
    "find_reward",
    "open_verifier",
    "split_policy",
]

_TEXTS = ("prompt", "answer")
# The least that makes sense of each integer.
_AT_LEAST = {
    "group_size": 2,
    "prompts": 1,
    "steps": 1,
    "max_new_tokens": 1,
    "samples": 1,
    "seed": 0,
    "save_every": 1,
    "evaluate_every": 0,
    "patience": 0,
    "log_every": 0,
    "workers": 0,
}


def check_arguments(*, success: float, temperature: float, **numbers: int) -> None:
    """Raises ValueError unless numbers are what they are to be, naming the first that is not.

    Args:
      success: Any finite number.
      temperature: A number above 0.
      **numbers: Integers, by the name of the argument.
    """
    runs.check_numbers(
        ConfigDict({**numbers, "success": success, "temperature": temperature}),
        at_least={name: _AT_LEAST[name] for name in numbers},
        above={"temperature": 0},
        finite=("success",),
        whole=numbers.keys(),
    )


def check_problems(name: str, problems: Sequence[Problem]) -> None:
    """Raises ValueError, naming the argument, unless there are problems and all are made of text.

    A number in the place of an answer would be equal to no completion, and every reward 0.
    """
    if isinstance(problems, str) or not isinstance(problems, Sequence):
        raise ValueError(f"{name}: expected a sequence of lm.Problem, got {shown(problems)}")
    if not problems:
        raise ValueError(f"{name}: expected at least one, got none")
    for number, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise ValueError(f"{name}[{number}]: expected an lm.Problem, got {shown(problem)}")
        for field in _TEXTS:
            text = getattr(problem, field)
            if not isinstance(text, str):
                raise ValueError(f"{name}[{number}].{field}: expected text, got {shown(text)}")


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


def check_room(policy: nnx.Module, problems: EncodedProblems, max_new_tokens: int) -> None:
    """Raises ValueError if the longest prompt and a completion exceed the policy's context."""
    model: Any = policy
    try:
        model.check_length(problems.prompts.tokens.shape[1], max_new_tokens)
    except ValueError as error:
        raise ValueError(f"max_new_tokens: {error}") from error


def find_reward(
    reward: Reward | GroupReward | str, problems: Mapping[str, Sequence[Problem]]
) -> Verifier | GroupReward:
    """The function that a reward is, or that is called so.

    Args:
      reward: A function of a problem and a completion, a `group_reward`, "exact", "numeric" or
        "math", see `maxpo.lm.tasks.verifiers`, or "module:function".
      problems: Problems that it scores, by the name of the argument that holds them.

    Raises:
      ImportError: If the package of "math" is missing.
      ValueError: If the reward is something else, or compares with an answer that it cannot read.
    """
    if not callable(reward) and not isinstance(reward, str | GroupReward):
        raise ValueError(f"reward: expected a function or 'module:function', got {reward!r}")
    if isinstance(reward, GroupReward):
        return reward
    function = _by_name(reward) if isinstance(reward, str) else reward
    for name, of in problems.items():
        for number, problem in enumerate(of):
            check_answer(function, problem, f"{name}[{number}].answer")
    return function


def _by_name(name: str) -> Verifier:
    try:
        return find_verifier(name)
    except ValueError as error:
        raise ValueError(f"reward: {str(error).removeprefix('verifier: ')}") from error


@contextlib.contextmanager
def open_verifier(
    reward: Verifier | GroupReward, workers: int, time_limit: float
) -> Iterator[Verify]:
    """What scores completions by a reward, in a `with` block.

    Args:
      reward: As of `find_reward`.
      workers: Processes that score; 0: this one.
      time_limit: Seconds for a completion, with `workers`.

    Raises:
      ValueError: If it is one of groups with workers.
    """
    if not workers:
        yield RewardFunction(reward)
        return
    if isinstance(reward, GroupReward):
        raise ValueError(
            f"workers: expected 0 for a group_reward, which scores a group at once, got {workers}"
        )
    with VerifierPool(reward, workers=workers, time_limit=time_limit) as pool:
        yield pool
