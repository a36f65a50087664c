"""The arrays of text that models read and write: padded prompts and groups of completions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Completions", "Prompts", "check_prompts", "check_tokens"]


class Prompts(NamedTuple):
    """Padded prompts.

    Attributes:
      tokens: `[P, T]` integers.
      mask: `[P, T]` boolean, True at real tokens. Padding may stand on either side.
    """

    tokens: jax.Array
    mask: jax.Array


class Completions(NamedTuple):
    """Groups of N completions, one group for each prompt.

    Attributes:
      tokens: `[P, N, T]` int32; the padding token where `mask` is False.
      log_probs: `[P, N, T]` float32 of the sampled tokens; 0 where `mask` is False.
      mask: `[P, N, T]` boolean, True at sampled tokens, the end token included. Padding comes
        after them.
    """

    tokens: jax.Array
    log_probs: jax.Array
    mask: jax.Array


def check_tokens(name: str, tokens: jax.Array, mask: jax.Array, axes: str) -> None:
    """Checks the dtypes, rank and shapes of tokens and their mask.

    Args:
      name: What they are, for the message.
      tokens: Integers, one axis for each letter of `axes`.
      mask: Boolean, of the same shape.
      axes: Names of the axes, for instance `"PNT"`.

    Raises:
      TypeError: If `tokens` are not integers or `mask` is not boolean.
      ValueError: If the rank is wrong, an axis is empty or the shapes differ.
    """
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    shape = f"[{', '.join(axes)}]"
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"expected the tokens of {name} to be integers, got {tokens.dtype}")
    if mask.dtype != jnp.bool_:
        raise TypeError(f"expected the mask of {name} to be boolean, got {mask.dtype}")
    if tokens.ndim != len(axes) or 0 in tokens.shape:
        raise ValueError(
            f"expected the tokens of {name} to have the shape {shape} without an empty axis, got "
            f"{list(tokens.shape)}"
        )
    if tokens.shape != mask.shape:
        raise ValueError(
            f"expected the mask of {name} to have the shape {list(tokens.shape)} of its tokens, "
            f"got {list(mask.shape)}"
        )


def check_prompts(prompts: Prompts) -> None:
    """Checks prompts as `check_tokens` does, and that none of them is empty.

    Emptiness is a matter of values, so it is only seen where they are known: not inside `jax.jit`,
    nor where other processes have some of them.

    Raises:
      TypeError: If `tokens` are not integers or `mask` is not boolean.
      ValueError: If ranks or shapes are wrong, or a prompt has no token.
    """
    check_tokens("prompts", *prompts, axes="PT")
    mask = prompts.mask
    if isinstance(mask, jax.core.Tracer):
        return
    if isinstance(mask, jax.Array) and not mask.is_fully_addressable:
        return
    (empty,) = np.nonzero(~np.asarray(mask).any(axis=1))
    if empty.size:
        raise ValueError(f"expected at least one token in every prompt, got none in {empty[0]}")
