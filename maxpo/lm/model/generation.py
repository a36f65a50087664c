"""Sampling groups of completions from a language model."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from maxpo.lm.model import _decoding, _graphs
from maxpo.lm.model._blocks import Blocks, rooms
from maxpo.lm.model._decoding import Chances, Settings
from maxpo.lm.model._token_draw import sample, truncate
from maxpo.lm.model.policy import LanguageModel, WithGrowingCache
from maxpo.lm.model.prompts import Completions, Prompts, check_prompts

__all__ = ["generate", "is_one_block", "sample", "start", "truncate"]


def generate(
    model: LanguageModel,
    prompts: Prompts,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: ArrayLike = 1.0,
    top_k: int | None = None,
    top_p: ArrayLike | None = None,
    eos_id: int | Sequence[int],
    key: jax.Array,
    pad_id: int = 0,
) -> Completions:
    """Samples `group_size` completions of each prompt.

    The prompts run once and their groups share the cache. Compiled loops then draw a token of every
    sample at a time, until all have drawn `eos_id` or `max_new_tokens` tokens. Tokens are drawn
    from the softmax of `logits / temperature`, truncated by `top_k` first and by `top_p` then.

    Long completions are sampled in blocks where the model is `WithGrowingCache`: between them the
    host makes the cache longer and moves the samples together that go on, so that a step pays for
    the tokens that there are. Tokens are those of a single loop, to rounding. A short completion is
    one block (`is_one_block`), and so is any inside `jax.jit`, where no host can decide.

    The function compiles again for other shapes, `eos_id`, `pad_id`, `top_k`, and for whether it is
    greedy or has a `top_p`; not for other parameters, temperatures, values of `top_p` or keys. A
    block is compiled for how many samples go on, which is made one of few numbers. Inside `jax.jit`
    a model that is merged from its graph definition and state costs less on the host for each call
    than one that passes through `nnx.jit`. A module that holds something unhashable compiles at
    every call outside of `jax.jit`.

    See "The Curious Case of Neural Text Degeneration" (https://arxiv.org/abs/1904.09751) for top_p.

    Args:
      model: The policy.
      prompts: P prompts, padded on either side.
      group_size: N.
      max_new_tokens: T, the longest completion.
      temperature: Divides the logits. 0 (a known number, not a traced one) is greedy: always the
        likeliest token, the first of equals.
      top_k: Draw among the k likeliest tokens only; more where the last of them has equals.
      top_p: Draw among the fewest likeliest tokens whose probabilities add up to at least this,
        the last one's equals included.
      eos_id: The token that ends a completion, or several that do.
      key: PRNG key. A sample's tokens depend on it and on the sample's place in the batch.
      pad_id: What stands after the end.

    Returns:
      Completions `[P, N, T]`. The log-probabilities are those of the distribution that was drawn
      from: temperature and truncation included. Greedy ones are those of the model's own
      distribution (temperature 1, whole), as the one "drawn from" would make them all 0.

    Raises:
      TypeError: If the prompts' tokens are not integers or their mask is not boolean.
      ValueError: If a setting is out of range, a prompt is empty, or prompts and completions
        exceed the model's context together.
    """
    return start(
        model,
        prompts,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eos_id=eos_id,
        key=key,
        pad_id=pad_id,
    )()


def start(
    model: LanguageModel,
    prompts: Prompts,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: ArrayLike = 1.0,
    top_k: int | None = None,
    top_p: ArrayLike | None = None,
    eos_id: int | Sequence[int],
    key: jax.Array,
    pad_id: int = 0,
) -> Callable[[], Completions]:
    """Starts `generate`, whose arguments it has, and returns what finishes it.

    The first block is in the device's queue when this returns. To finish takes the host as long as
    the other blocks take the device; where there are none, nothing.
    """
    check_prompts(prompts)
    _check_integer("group_size", group_size, least=1)
    _check_integer("max_new_tokens", max_new_tokens, least=1)
    model.check_length(prompts.tokens.shape[1], max_new_tokens)
    vocab_size = model.vocab_size
    ends = _end_tokens(eos_id, vocab_size)
    _check_integer("pad_id", pad_id, least=0, most=vocab_size - 1)
    if top_k is not None:
        _check_integer("top_k", top_k, least=1)
    _check_top_p(top_p)
    greedy = _is_greedy(temperature)
    # What truncates nothing need not be computed.
    if greedy or (top_k is not None and top_k >= vocab_size):
        top_k = None
    if greedy or (not isinstance(top_p, jax.core.Tracer) and top_p == 1):
        top_p = None

    settings = Settings(group_size, max_new_tokens, greedy, top_k, ends, pad_id)
    # Traced inside `jax.jit`, also where all arguments are constants there.
    as_float = partial(jnp.full, (), dtype=jnp.float32)
    chances = Chances(key, as_float(temperature), None if top_p is None else as_float(top_p))
    graph, state = nnx.split(model)
    graph = _graphs.hashable(graph)
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, prompts, chances)))
    if traced or is_one_block(max_new_tokens) or not isinstance(model, WithGrowingCache):
        found = _generate(graph, state, prompts, chances, settings)
        return lambda: found
    return Blocks(graph, state, model.cache_length_axes(), prompts, chances, settings).finish


def is_one_block(max_new_tokens: int) -> bool:
    """Whether completions of so many tokens are sampled by a single loop in any case."""
    return len(rooms(max_new_tokens)) == 1


@partial(jax.jit, static_argnames=("graph", "settings"))
def _generate(
    graph: Any, state: Any, prompts: Prompts, chances: Chances, settings: Settings
) -> Completions:
    """Samples by a single loop."""
    model = _graphs.merged(graph, state)
    room = rooms(settings.max_new_tokens)[-1]
    prompt, samples = _decoding.begin(model, prompts, chances, settings, room=room)
    samples, _ = _decoding.advance(
        model,
        model.decoding_weights(),
        prompt,
        samples,
        chances,
        settings,
        prompts=prompts.tokens.shape[0],
        places=None,
        step=jnp.int32(1),
        stop=settings.max_new_tokens,
        enough=0,
    )
    return _decoding.completions(samples.tokens, samples.log_probs, settings)


def _end_tokens(eos_id: int | Sequence[int], vocab_size: int) -> tuple[int, ...]:
    ends = tuple(eos_id) if isinstance(eos_id, Sequence) else (eos_id,)
    if not ends:
        raise ValueError("expected at least one eos_id, got none")
    for token in ends:
        _check_integer("eos_id", token, least=0, most=vocab_size - 1)
    return tuple(int(token) for token in ends)


def _is_greedy(temperature: ArrayLike) -> bool:
    if isinstance(temperature, jax.core.Tracer):
        return False
    if not 0 <= np.asarray(temperature) < math.inf:  # NaN, too.
        raise ValueError(f"expected a temperature of at least 0, got {temperature!r}")
    return bool(np.asarray(temperature) == 0)


def _check_top_p(top_p: ArrayLike | None) -> None:
    if top_p is None or isinstance(top_p, jax.core.Tracer):
        return
    if not 0 < np.asarray(top_p) <= 1:
        raise ValueError(f"expected 0 < top_p <= 1, got {top_p!r}")


def _check_integer(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < least
        or (most is not None and value > most)
    ):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"expected {name} to be an integer {bounds}, got {value!r}")
