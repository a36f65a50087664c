"""Problems as tokens, and which of them a step learns from."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from maxpo.lm.model.prompts import Prompts
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import Tokenizer, encode_prompt, pad

__all__ = [
    "PADDING",
    "SLACK",
    "EncodedProblems",
    "batch_of_step",
    "choose_widths",
    "encode",
    "problems_per_step",
    "prompt_encoder",
    "shared_prompts",
]


PADDING = 0.13
"""The share of padding that widths are chosen for."""
SLACK = 16
"""Tokens of padding in a prompt for which no further program is compiled."""


class EncodedProblems(NamedTuple):
    """Problems and their prompts as tokens.

    Attributes:
      problems: P problems.
      prompts: Their prompts, padded on the left to one width.
      widths: All widths that batches are padded to, ascending; a program is compiled for each.
      buckets: `[P]`, the number of the width that each prompt needs.
    """

    problems: Sequence[Problem]
    prompts: Prompts
    widths: tuple[int, ...]
    buckets: np.ndarray

    def take(self, indices: np.ndarray) -> "EncodedProblems":
        """The problems of these numbers, in this order, as wide as the longest of them needs."""
        buckets = self.buckets[indices]
        width = self.widths[max(buckets)]
        tokens, mask = (array[indices, -width:] for array in self.prompts)
        problems = [self.problems[i] for i in indices]
        return EncodedProblems(problems, Prompts(tokens, mask), self.widths, buckets)


def encode(
    train: Sequence[Problem],
    held_out: Sequence[Problem],
    tokenizer: Tokenizer,
    *,
    start: bool = True,
    batch: int = 1,
) -> tuple[EncodedProblems, EncodedProblems]:
    """The prompts of both as tokens, padded to the longest of all.

    Args:
      train: To learn from.
      held_out: To judge by.
      tokenizer: Between text and tokens.
      start: Whether prompts get the start token of the tokenizer; those of a chat have theirs.
      batch: How many prompts are to be of one width at least: those of a step.

    Raises:
      ValueError: If a prompt has no token.
    """
    to_ids = prompt_encoder(tokenizer, start=start)
    prompts = [to_ids(problem.prompt) for problem in (*train, *held_out)]
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
    longest = max(lengths[:count])
    is_even = longest - min(lengths[:count]) <= SLACK
    widths = (longest,) if is_even else choose_widths(lengths[:count], least=batch)
    if max(lengths) > widths[-1]:
        widths = (*widths, max(lengths))
    buckets = np.searchsorted(widths, lengths)
    return (
        EncodedProblems(train, Prompts(tokens[:count], mask[:count]), widths, buckets[:count]),
        EncodedProblems(held_out, Prompts(tokens[count:], mask[count:]), widths, buckets[count:]),
    )


def prompt_encoder(tokenizer: Tokenizer, *, start: bool) -> Callable[[str], list[int]]:
    """From a prompt to its ids, with the start token of the tokenizer if `start`."""
    return partial(encode_prompt, tokenizer) if start else tokenizer.encode


def choose_widths(
    lengths: Sequence[int], *, padding: float = PADDING, least: int = 1
) -> tuple[int, ...]:
    """The fewest widths, each prompt padded to the next, with at most a share of padding.

    Of all choices of so many widths it is the one with the least padding: with n(V, W) the number
    of prompts longer than V and at most W long, the least number of positions with b widths is

        cost(b, W) = min over V < W of cost(b - 1, V) + W n(V, W)

    Args:
      lengths: Tokens of each prompt.
      padding: At most this share of all positions; more where `least` allows no less.
      least: Prompts of each width.

    >>> choose_widths([10, 11, 10, 12, 11])
    (12,)
    >>> choose_widths([10, 11, 10, 100, 95])
    (11, 100)
    >>> choose_widths([10, 11, 10, 100, 95], least=3)
    (100,)
    """
    values, counts = np.unique(lengths, return_counts=True)
    real = np.sum(values * counts)
    up_to = np.concatenate([[0], np.cumsum(counts)])
    # held[i, j]: prompts of the lengths number i to j; positions[i, j]: what they take.
    held = up_to[None, 1:] - up_to[:-1, None]
    positions = np.where(held >= min(least, len(lengths)), values * held, np.inf)
    cost, choices = positions[0], []
    while real < (1 - padding) * cost[-1]:
        total = np.full_like(positions, np.inf)
        total[1:] = cost[:-1, None] + positions[1:]
        finer = np.min(total, axis=0)
        if finer[-1] >= cost[-1]:
            break
        choices.append(np.argmin(total, axis=0))
        cost = finer
    place, widths = len(values) - 1, [int(values[-1])]
    for choice in reversed(choices):
        place = int(choice[place]) - 1
        widths.append(int(values[place]))
    return tuple(reversed(widths))


def shared_prompts(train: Sequence[Problem], held_out: Sequence[Problem]) -> int:
    """How many held-out problems have the prompt of a problem to train on."""
    known = {problem.prompt for problem in train}
    return sum(problem.prompt in known for problem in held_out)


def problems_per_step(rl: ConfigDict) -> int:
    """The most problems for which a step samples.

    Prompts of one width are at least so many, so that a problem comes twice in one step only where
    an epoch ends in it, or there are no more problems.

    Args:
      rl: The `rl` of a config: `prompts`, and how often others may be drawn.
    """
    rounds: int = rl.oversampling if rl.zero_variance_groups == "oversample" else 1
    return rl.prompts * rounds


def batch_of_step(
    seed: int, step: int, size: int, count: int, buckets: np.ndarray | None = None
) -> np.ndarray:
    """Numbers of the problems of a step, a function of its arguments alone.

    Every epoch is a permutation of all `count` problems of its own, and the steps take `size` each
    from one epoch after the other. Where prompts need several widths, each width has such a row of
    epochs of its own, and each step takes its problems from one of them: in turns, as often as
    there are prompts of it. So no prompt is padded for another, and all are seen equally often.

    Args:
      seed: Seed of the permutations.
      step: From 1.
      size: Problems in a step.
      count: Problems there are.
      buckets: `[count]`, the number of each prompt's width. None: all are of one.

    >>> order = np.concatenate([batch_of_step(0, step, 4, 6) for step in (1, 2, 3)])
    >>> sorted(order[:6].tolist()) == sorted(order[6:].tolist()) == list(range(6))
    True
    """
    if buckets is None or buckets.min() == buckets.max():
        return _stream((seed,), (step - 1) * size, step * size, count)
    names, counts = np.unique(buckets, return_counts=True)
    # Multiples of the golden ratio fall into every interval as often as it is long, as evenly as
    # any row of numbers does.
    turns = (np.arange(1, step + 1) * ((5**0.5 - 1) / 2)) % 1
    chosen = np.searchsorted(np.cumsum(counts)[:-1] / count, turns, side="right")
    bucket = chosen[-1]
    before = np.sum(chosen[:-1] == bucket) * size
    (members,) = np.nonzero(buckets == names[bucket])
    return members[_stream((seed, int(bucket), 1), before, before + size, len(members))]


def _stream(seeds: tuple[int, ...], start: int, end: int, count: int) -> np.ndarray:
    """The numbers from one place to another in the row of all epochs."""
    places = np.arange(start, end)
    epochs = {
        int(epoch): np.random.default_rng((*seeds, int(epoch))).permutation(count)
        for epoch in np.unique(places // count)
    }
    return np.array([epochs[place // count][place % count] for place in places.tolist()])
