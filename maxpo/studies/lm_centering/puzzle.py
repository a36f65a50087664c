"""A puzzle with hundreds of right answers, graded inside a compiled program.

The prompt `17-3=` asks for digits that sum to 17, none of which is a 3; `8090` is one of the right
answers of four digits. As many answers are right, right samples of a group differ, and so do their
gradients: that is the noise that advantages can reduce.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.tasks.tokenizers import CharTokenizer, pad

__all__ = ["TOKENIZER", "Puzzles", "all_puzzles", "grade", "right_answers", "split"]

TOKENIZER = CharTokenizer("0123456789-=")
_ZERO = TOKENIZER.encode("0")[0]


class Puzzles(NamedTuple):
    """P puzzles.

    Attributes:
      prompts: `[P, ...]`, all of one length.
      sums: `[P]`, what the digits of an answer sum to.
      forbidden: `[P]`, the digit that no answer has.
    """

    prompts: Prompts
    sums: jax.Array
    forbidden: jax.Array

    def take(self, numbers: jax.Array) -> "Puzzles":
        """The puzzles of these numbers."""
        return jax.tree.map(lambda array: array[numbers], self)


def all_puzzles(least: int, most: int) -> Puzzles:
    """Every forbidden digit with every sum from `least` to `most`, numbers of two digits."""
    pairs = list(itertools.product(range(least, most + 1), range(10)))
    texts = [TOKENIZER.encode(f"{total}-{digit}=") for total, digit in pairs]
    tokens, mask = pad(texts, length=len(texts[0]), pad_id=TOKENIZER.pad_id, side="left")
    sums, forbidden = np.array(pairs, np.int32).T
    return jax.tree.map(jnp.asarray, Puzzles(Prompts(tokens, mask), sums, forbidden))


def split(puzzles: Puzzles, held_out: int, seed: int) -> tuple[Puzzles, Puzzles]:
    """Puzzles to learn from, and `held_out` others to judge by."""
    order = np.random.default_rng(seed).permutation(len(puzzles.sums))
    return puzzles.take(order[held_out:]), puzzles.take(order[:held_out])


def grade(puzzles: Puzzles, completions: Completions, digits: int) -> jax.Array:
    """Whether completions `[P, N, digits + 1]` are right: that many digits, then the end.

    Returns:
      Rewards `[P, N]`, 0 or 1.
    """
    drawn = completions.tokens[..., :digits] - _ZERO
    is_number = jnp.all((drawn >= 0) & (drawn <= 9), axis=-1)
    is_end = completions.tokens[..., digits] == TOKENIZER.eos_id
    is_sum = jnp.sum(drawn, axis=-1) == puzzles.sums[:, None]
    is_allowed = jnp.all(drawn != puzzles.forbidden[:, None, None], axis=-1)
    return (is_number & is_end & is_sum & is_allowed).astype(jnp.float32)


def right_answers(puzzles: Puzzles, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """All right answers of P puzzles.

    Returns:
      Tokens `[P, A, digits + 1]` with the end, and how many `[P]` of the A are answers.
    """
    numbers = np.array(list(itertools.product(range(10), repeat=digits)), np.int32)
    found = [
        numbers[(numbers.sum(axis=1) == total) & np.all(numbers != digit, axis=1)]
        for total, digit in zip(np.asarray(puzzles.sums), np.asarray(puzzles.forbidden), strict=True)
    ]
    counts = np.array([len(answers) for answers in found])
    tokens = np.full((len(found), counts.max(), digits + 1), TOKENIZER.eos_id, np.int32)
    for row, answers in zip(tokens, found, strict=True):
        row[: len(answers), :digits] = answers + _ZERO
    return tokens, counts
