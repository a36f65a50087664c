"""What sampling costs where completions end early and late, by a single loop and in blocks.

The lengths are given, so that no model has to be trained for them: a policy of random weights draws
the end token where it is told to, and only there.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.model.generation import generate
from maxpo.lm.model.policy import NO_LENGTH
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.transformer import Transformer
from maxpo.studies.speed.lengths import log_normal_lengths

__all__ = [
    "BLOCKS",
    "SINGLE_LOOP",
    "OfGivenLengths",
    "Seconds",
    "check_config",
    "given_lengths",
    "model_config",
    "sampling_calls",
    "sampling_table",
]

SINGLE_LOOP, BLOCKS = "single loop", "blocks"
_END = 0

Seconds = Mapping[tuple[str, str], list[float]]
"""Of each round, by the lengths that are sampled and how."""


class OfGivenLengths(nnx.Module):
    """A transformer whose completions end where they are told to.

    Args:
      model: The transformer.
      lengths: `[P, N]`, at least 2 each: the first token depends on the prompt alone. A completion
        as long as a caller's limit is truncated there.
      limit: T.
    """

    def __init__(self, model: Transformer, lengths: np.ndarray, *, limit: int):
        self.model = model
        # The step after which the end is drawn; never, where the limit comes first.
        last = np.where(lengths < limit, lengths - 2, limit)
        self.last = nnx.Variable(jnp.asarray(last, jnp.int32))

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.model.vocab_size

    def check_length(self, prompt: int, completion: int) -> None:
        """Raises ValueError if a prompt and a completion of so many tokens exceed the context."""
        self.model.check_length(prompt, completion)

    def prefill(self, prompts: Prompts) -> tuple[Any, jax.Array]:
        """The transformer's, whose states say in one more number whether the end comes next."""
        prompt, hidden = self.model.prefill(prompts)
        return prompt, _with_end(hidden, jnp.zeros(hidden.shape[:-1], bool))

    def empty_cache(self, prompts: int, group_size: int, length: int) -> tuple[Any, jax.Array]:
        """The transformer's, and where the samples end."""
        return self.model.empty_cache(prompts, group_size, length), self.last[...]

    def cache_length_axes(self) -> tuple[Any, int]:
        """The axes of tokens in `empty_cache`."""
        return self.model.cache_length_axes(), NO_LENGTH

    def decoding_weights(self) -> Any:
        """The transformer's."""
        return self.model.decoding_weights()

    def decode(
        self, weights: Any, tokens: jax.Array, step: jax.Array, prompt: Any, own: Any
    ) -> tuple[jax.Array, Any]:
        """The transformer's states and cache, and whether the end comes next."""
        cache, last = own
        hidden, cache = self.model.decode(weights, tokens, step, prompt, cache)
        return _with_end(hidden, last == step), (cache, last)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The transformer's, but for those of the end token: sure or impossible."""
        logits = self.model.logits(hidden[..., :-1])
        of_end = jnp.where(hidden[..., -1] > 0, jnp.float32(1e9), -jnp.inf)
        return logits.at[..., _END].set(of_end)


def _with_end(hidden: jax.Array, is_next: jax.Array) -> jax.Array:
    return jnp.concatenate([hidden, is_next[..., None].astype(hidden.dtype)], axis=-1)


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number of the config makes no sense, naming it."""
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "repeats": 1,
            "prompts": 1,
            "group_size": 1,
            "prompt_length": 1,
            "micro_batches": 1,
            "new_tokens": 2,
            "lengths.sigma": 0,
        },
        above={"lengths.median": 0},
    )
    runs.check_divisor("micro_batches", config.micro_batches, of="prompts", whole=config.prompts)
    model_config(config)


def model_config(config: ConfigDict) -> TransformerConfig:
    """The shape of the model that is timed."""
    fields = {name: value for name, value in config.model.items() if name != "size"}
    length = config.prompt_length + config.new_tokens
    return make_config(config.model.size, context_length=length, **fields)


def given_lengths(config: ConfigDict) -> dict[str, np.ndarray]:
    """Lengths `[P, N]` that are sampled, by name."""
    shape = config.prompts, config.group_size
    rng = np.random.default_rng(config.seed)
    uneven = log_normal_lengths(rng, *shape, config.new_tokens, **config.lengths)
    return {
        "log-normal": np.maximum(uneven, 2),
        "equal": np.full(shape, config.new_tokens, np.int32),
    }


def sampling_calls(config: ConfigDict) -> dict[tuple[str, str], Callable[[], Completions]]:
    """What is timed, by lengths and by how they are sampled."""
    key = jax.random.key(config.seed)
    shape = config.prompts, config.prompt_length
    tokens = jax.random.randint(key, shape, 0, config.model.vocab_size, jnp.int32)
    prompts = Prompts(tokens, jnp.ones(shape, bool))
    model = Transformer(model_config(config), rngs=nnx.Rngs(config.seed))
    calls: dict[tuple[str, str], Callable[[], Completions]] = {}
    for name, lengths in given_lengths(config).items():
        policy = OfGivenLengths(model, lengths, limit=config.new_tokens)
        graph, state = nnx.split(policy)
        sample = partial(
            generate,
            prompts=prompts,
            group_size=config.group_size,
            max_new_tokens=config.new_tokens,
            eos_id=_END,
            key=key,
        )

        # Inside `jax.jit` there is a single loop.
        def loop(state: Any, graph: Any = graph, sample: Any = sample) -> Completions:
            return sample(nnx.merge(graph, state))

        calls[name, SINGLE_LOOP] = partial(jax.jit(loop), state)
        calls[name, BLOCKS] = partial(sample, policy)
    return calls


def sampling_table(config: ConfigDict, seconds: Seconds) -> dict[str, dict[str, float]]:
    """Rows by lengths: useful tokens a second of both, and their ratio."""
    rows = {}
    for name, lengths in given_lengths(config).items():
        rates = {
            how: float(lengths.sum() / np.median(seconds[name, how]))
            for how in (SINGLE_LOOP, BLOCKS)
        }
        rows[f"sampling, {name} lengths"] = {
            "mean length": float(lengths.mean()),
            **{f"{how}, tokens/s": rate for how, rate in rates.items()},
            "ratio": rates[BLOCKS] / rates[SINGLE_LOOP],
        }
    return rows
