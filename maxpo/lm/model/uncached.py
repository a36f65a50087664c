"""Any module from tokens to logits as a policy, without a cache."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo.lm.model.prompts import Prompts

__all__ = ["TokensToLogits", "Uncached"]


class TokensToLogits(Protocol):
    """An `nnx.Module` that reads whole sequences."""

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits `[B, T, V]` of the token after each.

        Args:
          tokens: `[B, T]` int32.
          mask: `[B, T]` boolean, True at real tokens, which follow one another; padding comes
            before and after them and must change nothing. Positions count real tokens.
        """


class _Prompt(NamedTuple):
    tokens: jax.Array
    mask: jax.Array


class Uncached(nnx.Module):
    """A policy that runs its module on the whole sequence for every token.

    Sampling T tokens after S costs T passes over S + T tokens, where a cache would make it one pass
    and T single tokens, and log-probabilities need `P * N * (S + T) * V` floats: right for a first
    try with a module of one's own. For speed write a `LanguageModel`. The parameters are those of
    the module, under the name `module`.

    Args:
      module: From tokens to logits.
      vocab_size: V.
      context_length: Longest prompt and completion together.

    Raises:
      ValueError: If a number is not positive.
    """

    def __init__(self, module: TokensToLogits, *, vocab_size: int, context_length: int):
        for name, value in (("vocab_size", vocab_size), ("context_length", context_length)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.module = module
        self.vocab_size = vocab_size
        self.context_length = context_length

    def check_length(self, prompt: int, completion: int) -> None:
        """Raises ValueError if a prompt and a completion of so many tokens exceed the context."""
        if prompt + completion > self.context_length:
            raise ValueError(
                f"context_length: expected at least {prompt} + {completion} for prompt and "
                f"completion, got {self.context_length}"
            )

    def completion_logits(self, prompts: Prompts, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits `[P, N, T, V]`, float32, that predict each token of completions `[P, N, T]`."""
        P, N, T = tokens.shape
        S = prompts.tokens.shape[1]
        self.check_length(S, T)
        logits = self._run(_on_the_left(prompts), jnp.where(mask, tokens, 0), mask)
        return logits.reshape(P, N, S + T, -1)[:, :, S - 1 : -1]

    def prefill(self, prompts: Prompts) -> tuple[_Prompt, jax.Array]:
        """The prompts, padded on the left, and the logits `[P, V]` after each."""
        prompt = _on_the_left(prompts)
        return prompt, self.module(*prompt)[:, -1].astype(jnp.float32)

    def empty_cache(self, prompts: int, group_size: int, length: int) -> jax.Array:
        """Room for the tokens of every sample."""
        return jnp.zeros((prompts, group_size, length), jnp.int32)

    def cache_length_axes(self) -> int:
        """The axis of tokens in `empty_cache`."""
        return 2

    def decoding_weights(self) -> None:
        """Nothing: the module has its own."""

    def decode(
        self, weights: None, tokens: jax.Array, step: jax.Array, prompt: _Prompt, own: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Logits `[P, N, V]` after token number `step`, and all tokens up to it."""
        P, N, length = own.shape
        first = jnp.zeros_like(step)
        own = jax.lax.dynamic_update_slice(own, tokens[..., None], (first, first, step))
        exist = jnp.broadcast_to(jnp.arange(length, dtype=step.dtype) <= step, own.shape)
        logits = self._run(prompt, own, exist)
        place = prompt.tokens.shape[1] + step
        last = jax.lax.dynamic_index_in_dim(logits, place, axis=1, keepdims=False)
        return last.reshape(P, N, -1), own

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The states are the logits."""
        return hidden

    def _run(self, prompt: _Prompt, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits `[P * N, S + T, V]` of every prompt followed by each of its completions."""
        P, N, T = tokens.shape
        repeated = (jnp.repeat(x, N, axis=0) for x in prompt)
        own = (tokens.reshape(P * N, T), mask.reshape(P * N, T))
        joined = (jnp.concatenate(parts, axis=1) for parts in zip(repeated, own, strict=True))
        return self.module(*joined).astype(jnp.float32)


def _on_the_left(prompts: Prompts) -> _Prompt:
    """Moves padding on the right to the left, so that completions follow their prompts."""
    tokens, mask = jnp.asarray(prompts.tokens, jnp.int32), jnp.asarray(prompts.mask)
    S = tokens.shape[1]
    after = jnp.argmax(mask[:, ::-1], axis=1).astype(jnp.int32)
    places = (jnp.arange(S, dtype=jnp.int32)[None] - after[:, None]) % S
    mask = jnp.take_along_axis(mask, places, axis=1)
    return _Prompt(jnp.where(mask, jnp.take_along_axis(tokens, places, axis=1), 0), mask)
