"""Problems as tokens, and which of them a step learns from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maxpo.lm.model.prompts import Prompts
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import Tokenizer, pad

__all__ = ["EncodedProblems", "batch_of_step", "encode", "shared_prompts"]


class EncodedProblems(NamedTuple):
    """Problems and their prompts as tokens.

    Attributes:
      problems: P problems.
      prompts: Their prompts, padded on the left to one length.
    """

    problems: Sequence[Problem]
    prompts: Prompts

    def take(self, indices: np.ndarray) -> "EncodedProblems":
        """The problems of these numbers, in this order."""
        prompts = Prompts(self.prompts.tokens[indices], self.prompts.mask[indices])
        return EncodedProblems([self.problems[index] for index in indices], prompts)


def encode(
    train: Sequence[Problem], held_out: Sequence[Problem], tokenizer: Tokenizer
) -> tuple[EncodedProblems, EncodedProblems]:
    """The prompts of both as tokens, padded to the longest of all.

    Raises:
      ValueError: If a prompt has no token.
    """
    prompts = [tokenizer.encode(problem.prompt) for problem in (*train, *held_out)]
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == 0:
        raise ValueError(
            f"task: expected prompts of at least one token, got none in number {lengths.index(0)}"
        )
    # Arrays of the host, which compiled functions take as they take the device's.
    tokens: Any
    mask: Any
    tokens, mask = pad(prompts, length=max(lengths), pad_id=tokenizer.pad_id, side="left")
    count = len(train)
    return (
        EncodedProblems(train, Prompts(tokens[:count], mask[:count])),
        EncodedProblems(held_out, Prompts(tokens[count:], mask[count:])),
    )


def shared_prompts(train: Sequence[Problem], held_out: Sequence[Problem]) -> int:
    """How many held-out problems have the prompt of a problem to train on."""
    known = {problem.prompt for problem in train}
    return sum(problem.prompt in known for problem in held_out)


def batch_of_step(seed: int, step: int, size: int, count: int) -> np.ndarray:
    """Numbers of the problems of a step, a function of its arguments alone.

    Every epoch is a permutation of all `count` problems of its own, and the steps take `size` each
    from one epoch after the other.

    Args:
      seed: Seed of the permutations.
      step: From 1.
      size: Problems in a step.
      count: Problems there are.

    >>> order = np.concatenate([batch_of_step(0, step, 4, 6) for step in (1, 2, 3)])
    >>> sorted(order[:6].tolist()) == sorted(order[6:].tolist()) == list(range(6))
    True
    """
    places = np.arange((step - 1) * size, step * size)
    epochs = {
        int(epoch): np.random.default_rng((seed, int(epoch))).permutation(count)
        for epoch in np.unique(places // count)
    }
    return np.array([epochs[place // count][place % count] for place in places.tolist()])
