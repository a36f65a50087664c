"""A puzzle with thousands of right answers, graded inside a compiled program.

The prompt `17-3=` asks for digits that sum to 17 at most, none of which is a 3; `8090` is one of
the right answers of four digits. The sum decides how many of all answers are right, so a model
that has learned no more than to write digits succeeds as often as the sums of its puzzles say.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.tasks.tokenizers import CharTokenizer, pad

__all__ = ["TOKENIZER", "Puzzles", "all_puzzles", "grade", "in_format", "random_answers", "split"]

TOKENIZER = CharTokenizer("0123456789-=")
_ZERO = TOKENIZER.encode("0")[0]


class Puzzles(NamedTuple):
    """P puzzles.

    Attributes:
      prompts: `[P, ...]`, all of one length.
      sums: `[P]`, the most that the digits of an answer sum to.
      forbidden: `[P]`, the digit that no answer has.
    """

    prompts: Prompts
    sums: jax.Array
    forbidden: jax.Array

    def take(self, numbers: jax.Array | np.ndarray) -> "Puzzles":
        """The puzzles of these numbers."""
        return jax.tree.map(lambda array: array[numbers], self)


def all_puzzles(least: int, most: int) -> Puzzles:
    """Every forbidden digit with every sum from `least` to `most`, numbers of two digits."""
    pairs = list(itertools.product(range(least, most + 1), range(10)))
    texts = [TOKENIZER.encode(f"{total}-{digit}=") for total, digit in pairs]
    tokens, mask = pad(texts, length=len(texts[0]), pad_id=TOKENIZER.pad_id, side="left")
    sums, forbidden = np.array(pairs, np.int32).T
    prompts = Prompts(jnp.asarray(tokens), jnp.asarray(mask))
    return Puzzles(prompts, jnp.asarray(sums), jnp.asarray(forbidden))


def split(puzzles: Puzzles, held_out: int, seed: int) -> tuple[Puzzles, Puzzles]:
    """Puzzles to learn from, and `held_out` others to judge by."""
    order = np.random.default_rng(seed).permutation(len(puzzles.sums))
    return puzzles.take(order[held_out:]), puzzles.take(order[:held_out])


def random_answers(key: jax.Array, count: int, digits: int) -> jax.Array:
    """Answers in the right format, right or wrong: `[count, digits + 1]` tokens with the end."""
    drawn = jax.random.randint(key, (count, digits), _ZERO, _ZERO + 10)
    return jnp.pad(drawn, ((0, 0), (0, 1)), constant_values=TOKENIZER.eos_id)


def in_format(completions: Completions) -> jax.Array:
    """Which completions `[P, N, digits + 1]` are digits and then the end: booleans `[P, N]`."""
    drawn = completions.tokens[..., :-1] - _ZERO
    is_number = jnp.all((drawn >= 0) & (drawn <= 9), axis=-1)
    return is_number & (completions.tokens[..., -1] == TOKENIZER.eos_id)


def grade(puzzles: Puzzles, completions: Completions) -> jax.Array:
    """Rewards `[P, N]` of completions `[P, N, digits + 1]`: 1 where they are right, else 0."""
    drawn = completions.tokens[..., :-1] - _ZERO
    is_sum = jnp.sum(drawn, axis=-1) <= puzzles.sums[:, None]
    is_allowed = jnp.all(drawn != puzzles.forbidden[:, None, None], axis=-1)
    return (in_format(completions) & is_sum & is_allowed).astype(jnp.float32)
