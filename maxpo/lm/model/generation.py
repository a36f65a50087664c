"""Sampling groups of completions from a language model."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from maxpo.lm.model.policy import LanguageModel
from maxpo.lm.model.prompts import Completions, Prompts, check_prompts

__all__ = ["generate", "sample", "truncate"]


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

    The prompts run once and their groups share the cache. One compiled loop then draws a token of
    every sample a time, until all have drawn `eos_id` or `max_new_tokens` tokens. Tokens are drawn
    from the softmax of `logits / temperature`, truncated by `top_k` first and by `top_p` then.

    The function compiles again for other shapes, `eos_id`, `pad_id`, `top_k`, and for whether it is
    greedy or has a `top_p`; not for other parameters, temperatures, values of `top_p` or keys. It
    may be called inside `jax.jit`; there a model that is merged from its graph definition and state
    costs less on the host for each call than one that passes through `nnx.jit`. A module that holds
    something unhashable compiles at every call outside of `jax.jit`.

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
    check_prompts(prompts)
    _check_integer("group_size", group_size, least=1)
    _check_integer("max_new_tokens", max_new_tokens, least=1)
    model.check_length(prompts.tokens.shape[1], max_new_tokens)
    vocab_size = model.vocab_size
    ends = tuple(eos_id) if isinstance(eos_id, Sequence) else (eos_id,)
    if not ends:
        raise ValueError("expected at least one eos_id, got none")
    for token in ends:
        _check_integer("eos_id", token, least=0, most=vocab_size - 1)
    _check_integer("pad_id", pad_id, least=0, most=vocab_size - 1)
    if top_k is not None:
        _check_integer("top_k", top_k, least=1)
    greedy = False
    if not isinstance(temperature, jax.core.Tracer):
        if not 0 <= np.asarray(temperature) < math.inf:  # NaN, too.
            raise ValueError(f"expected a temperature of at least 0, got {temperature!r}")
        greedy = bool(np.asarray(temperature) == 0)
    if (
        top_p is not None
        and not isinstance(top_p, jax.core.Tracer)
        and not 0 < np.asarray(top_p) <= 1
    ):
        raise ValueError(f"expected 0 < top_p <= 1, got {top_p!r}")
    # What truncates nothing need not be computed.
    if greedy or (top_k is not None and top_k >= vocab_size):
        top_k = None
    if greedy or (not isinstance(top_p, jax.core.Tracer) and top_p == 1):
        top_p = None

    graph, state = nnx.split(model)
    return _generate(
        _hashable(graph),
        state,
        prompts,
        key,
        jnp.float32(temperature),
        None if top_p is None else jnp.float32(top_p),
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        greedy=greedy,
        top_k=top_k,
        ends=tuple(int(token) for token in ends),
        pad_id=pad_id,
    )


class _ById:
    """A graph definition that cannot be hashed, because its module holds something that cannot."""

    def __init__(self, graph: Any):
        self.graph = graph


def _hashable(graph: Any) -> Any:
    try:
        hash(graph)
    except TypeError:
        return _ById(graph)
    return graph


class _Loop(NamedTuple):
    """What one turn of the loop hands to the next. The arrays of samples are `[P, N, ...]`."""

    step: jax.Array
    cache: Any
    done: jax.Array
    last: jax.Array
    tokens: jax.Array
    log_probs: jax.Array


@functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("group_size", "max_new_tokens", "greedy", "top_k", "ends", "pad_id"),
)
def _generate(
    graph: Any,
    state: Any,
    prompts: Prompts,
    key: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array | None,
    *,
    group_size: int,
    max_new_tokens: int,
    greedy: bool,
    top_k: int | None,
    ends: tuple[int, ...],
    pad_id: int,
) -> Completions:
    model = nnx.merge(graph.graph if isinstance(graph, _ById) else graph, state)
    P, N, T = prompts.tokens.shape[0], group_size, max_new_tokens
    prompt, hidden = model.prefill(prompts)
    weights = model.decoding_weights()

    def draw(logits: jax.Array, step: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Tokens `[P, N]` and their log-probabilities, from logits `[P, N, V]`."""
        if greedy:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            logits = truncate(logits / temperature, top_k=top_k, top_p=top_p)
            drawn = jax.random.uniform(jax.random.fold_in(key, step), (P, N), jnp.float32)
            token = sample(logits, drawn)
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)

    def is_end(token: jax.Array) -> jax.Array:
        return functools.reduce(operator.or_, [token == end for end in ends])

    def turn(loop: _Loop) -> _Loop:
        hidden, cache = model.decode(weights, loop.last, loop.step - 1, prompt, loop.cache)
        token, log_prob = draw(model.logits(hidden), loop.step)
        token = jnp.where(loop.done, pad_id, token)
        first = jnp.int32(0)
        place = (first, first, loop.step)  # All of one type, also in x64 mode.
        return _Loop(
            loop.step + 1,
            cache,
            loop.done | is_end(token),
            token,
            jax.lax.dynamic_update_slice(loop.tokens, token[..., None], place),
            jax.lax.dynamic_update_slice(
                loop.log_probs, jnp.where(loop.done, 0, log_prob)[..., None], place
            ),
        )

    logits = model.logits(hidden)
    token, log_prob = draw(jnp.broadcast_to(logits[:, None], (P, N, logits.shape[-1])), 0)
    loop = _Loop(
        jnp.int32(1),
        model.empty_cache(P, N, max(T - 1, 1)),
        is_end(token),
        token,
        jnp.full((P, N, T), pad_id, jnp.int32).at[..., 0].set(token),
        jnp.zeros((P, N, T), jnp.float32).at[..., 0].set(log_prob),
    )
    loop = jax.lax.while_loop(lambda loop: (loop.step < T) & ~jnp.all(loop.done), turn, loop)
    ended = is_end(loop.tokens).astype(jnp.int32)
    # Up to the first end, and nothing of what was never drawn.
    mask = (jnp.cumsum(ended, axis=-1) == ended) & (jnp.arange(T, dtype=jnp.int32) < loop.step)[
        None, None
    ]
    return Completions(loop.tokens, loop.log_probs, mask)


def truncate(logits: jax.Array, *, top_k: int | None, top_p: ArrayLike | None) -> jax.Array:
    """Sets the logits `[..., V]` of unlikely tokens to -inf: below `top_k`, then beyond `top_p`."""
    if top_k is not None:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The likeliest token stays even where rounding leaves nothing before it to compare.
        kept = (before < top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def sample(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Tokens `[...]`, int32, by inverting the distribution function at `uniform` in [0, 1)."""
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    # Parallel sums are not monotone to the last bit: without the mask an impossible token could
    # seem to have a chance of one rounding, and be drawn once in a million.
    reached = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    beyond = reached > uniform[..., None] * jnp.max(reached, axis=-1, keepdims=True)
    indices = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.min(jnp.where(beyond, indices, logits.shape[-1]), axis=-1)


def _check_integer(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < least
        or (most is not None and value > most)
    ):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"expected {name} to be an integer {bounds}, got {value!r}")
