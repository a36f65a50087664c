"""What training asks of a language model, so that any NNX module can be the policy.

Sampling needs a `LanguageModel`, of which a `WithGrowingCache` is faster at long completions,
scoring and updates a `WithHiddenStates` or a `WithLogits`, and packed ones a `WithPacking`.
`Transformer` is all but the logits' one; `Uncached` of `maxpo.lm.model.uncached` makes a policy of
any module that maps tokens to logits. Beside these methods a policy may have a table `rules` (see
`maxpo.lm.model.sharding`), without which it can be trained on one device only.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx

from maxpo.lm.model.prompts import Prompts

__all__ = [
    "NOTHING_FROZEN",
    "NO_LENGTH",
    "LanguageModel",
    "PackedStates",
    "Scored",
    "WithGrowingCache",
    "WithHiddenStates",
    "WithLogits",
    "WithPacking",
    "trainable",
]

NO_LENGTH = -1
"""In place of the axis of tokens, for arrays of a cache that have none."""
NOTHING_FROZEN: nnx.State = nnx.State({})
"""What a policy that is trained whole has beside trained parameters."""


class LanguageModel(Protocol):
    """What `maxpo.lm.model.generation.generate` calls.

    States `[..., D]` and caches are the model's own affair: they are handed from one method to the
    next, caches as pytrees whose shapes `decode` does not change.
    """

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""

    def check_length(self, prompt: int, completion: int) -> None:
        """Raises ValueError if a prompt and a completion of so many tokens exceed the context."""

    def prefill(self, prompts: Prompts) -> tuple[Any, jax.Array]:
        """What the completions of P prompts attend to, and the states `[P, D]` that start them."""

    def empty_cache(self, prompts: int, group_size: int, length: int) -> Any:
        """Room for `length` tokens of each of P x N samples."""

    def decoding_weights(self) -> Any:
        """What `decode` needs of the parameters, computed once for all tokens."""

    def decode(
        self, weights: Any, tokens: jax.Array, step: jax.Array, prompt: Any, own: Any
    ) -> tuple[jax.Array, Any]:
        """States `[P, N, D]` after token number `step` of every sample, and the next cache.

        Args:
          weights: From `decoding_weights`.
          tokens: `[P, N]`, the tokens number `step`.
          step: Scalar, counted from 0.
          prompt: From `prefill`.
          own: From `empty_cache` at first, then what this method returned.
        """

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]`, float32, of states `[..., D]`."""


@runtime_checkable
class WithGrowingCache(LanguageModel, Protocol):
    """A policy whose caches may be cut and grown while it samples.

    The arrays of a prompt's cache have the leading axis P, those of the samples' own P and N, and
    no sample depends on another one. `decode` asks for no more room than `step + 1` tokens, and
    entries that it has not written mean nothing.
    """

    def cache_length_axes(self) -> Any:
        """The axis of tokens of each array that `empty_cache` returns, in a tree of its structure.

        `NO_LENGTH` where there is none, such as for a recurrent state.
        """


class WithHiddenStates(Protocol):
    """A policy whose logits are a product, which is then computed in chunks of tokens."""

    def completion_hidden_states(
        self, prompts: Prompts, tokens: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """States `[P, N, T, D]` that predict each token of completions `[P, N, T]`."""

    def unembedding(self) -> jax.Array:
        """The matrix `[V, D]` from states to logits."""


class PackedStates(NamedTuple):
    """States that predict the real tokens of completions, in parts that lie on a device each.

    Attributes:
      states: `[shards, E, D]`.
      places: `[shards, E]` int32, the token that each predicts, counted through the shard's groups,
        samples and tokens; beyond them all where it predicts none.
    """

    states: jax.Array
    places: jax.Array


@runtime_checkable
class WithPacking(Protocol):
    """A policy that need not compute anything for padding."""

    def packed_hidden_states(
        self, prompts: Prompts, tokens: jax.Array, mask: jax.Array, room: int
    ) -> PackedStates:
        """States that predict completions `[P, N, T]`, for so many tokens on each device.

        The last token of a sample predicts nothing and needs no room. `mask` may leave out whole
        samples.
        """

    def unembedding(self) -> jax.Array:
        """The matrix `[V, D]` from states to logits."""


@runtime_checkable
class WithLogits(Protocol):
    """A policy that gives logits and no states."""

    def completion_logits(self, prompts: Prompts, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits `[P, N, T, V]` that predict each token of completions `[P, N, T]`."""


Scored = WithHiddenStates | WithLogits
"""What `maxpo.lm.model.token_log_probs.completion_log_probs` calls."""


def trainable(policy: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A policy's structure, what is trained of it, and what is not.

    Trained are the variables of the type `nnx.LoRAParam` where there are some, and else all.
    """
    parts: Any = nnx.split(policy, nnx.LoRAParam, ...)
    graph, adapters, rest = parts
    return (graph, adapters, rest) if jax.tree.leaves(adapters) else (graph, rest, NOTHING_FROZEN)
