"""The compiled loop that draws tokens, for any rectangle of samples."""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maxpo.lm.model._token_draw import sample, truncate
from maxpo.lm.model.policy import LanguageModel
from maxpo.lm.model.prompts import Completions, Prompts


@dataclasses.dataclass(frozen=True)
class Settings:
    """What programs are compiled for, beside shapes; as for `generate`."""

    group_size: int
    max_new_tokens: int
    greedy: bool
    top_k: int | None
    ends: tuple[int, ...]
    pad_id: int


class Chances(NamedTuple):
    """What decides the tokens, beside the model; as for `generate`."""

    key: jax.Array
    temperature: ArrayLike
    top_p: ArrayLike | None


class Samples(NamedTuple):
    """Samples that are drawn: R rows of W, those of a row from the same prompt.

    Attributes:
      cache: The model's own, with room for some tokens.
      last: `[R, W]`, the last tokens.
      done: `[R, W]` boolean, True after an end.
      tokens: `[R, W, T]`, padded.
      log_probs: `[R, W, T]`.
    """

    cache: Any
    last: jax.Array
    done: jax.Array
    tokens: jax.Array
    log_probs: jax.Array


def begin(
    model: LanguageModel, prompts: Prompts, chances: Chances, settings: Settings, *, room: int
) -> tuple[Any, Samples]:
    """What the prompts' samples attend to, and the samples `[P, N]` with their first tokens.

    Args:
      model: The policy.
      prompts: P prompts.
      chances: Of the tokens.
      settings: N, and what counts as an end.
      room: How many tokens the cache has room for.
    """
    P, N, T = prompts.tokens.shape[0], settings.group_size, settings.max_new_tokens
    prompt, hidden = model.prefill(prompts)
    logits = model.logits(hidden)
    logits = jnp.broadcast_to(logits[:, None], (P, N, logits.shape[-1]))
    uniform = _uniform(chances, 0, (P, N), None)
    token, log_prob = _draw(logits, uniform, chances, settings)
    samples = Samples(
        model.empty_cache(P, N, room),
        token,
        _is_end(token, settings),
        jnp.full((P, N, T), settings.pad_id, jnp.int32).at[..., 0].set(token),
        jnp.zeros((P, N, T), jnp.float32).at[..., 0].set(log_prob),
    )
    return prompt, samples


def advance(
    model: LanguageModel,
    weights: Any,
    prompt: Any,
    samples: Samples,
    chances: Chances,
    settings: Settings,
    *,
    prompts: int,
    places: jax.Array | None,
    step: jax.Array,
    stop: ArrayLike,
    enough: ArrayLike,
) -> tuple[Samples, jax.Array]:
    """Draws tokens number `step`, `step + 1`, .. of all samples.

    Args:
      model: The policy.
      weights: Its `decoding_weights`.
      prompt: What the rows attend to, leading axis R.
      samples: With tokens before `step`.
      chances: Of the tokens.
      settings: N, and what counts as an end.
      prompts: P, of the whole batch: a sample's numbers are those of its place in it.
      places: `[D, R / D * W]`, the place of each sample among those of the shard of the batch that
        it belongs to, of D. None: rows are the groups of the batch, in their order.
      step: Scalar.
      stop: Tokens from this one on are not drawn.
      enough: Nor any more once at most so many samples go on.

    Returns:
      The samples, and the number of the next token.
    """
    shape = (prompts, settings.group_size)

    def goes_on(loop: tuple[Samples, jax.Array]) -> jax.Array:
        samples, step = loop
        return (step < stop) & (jnp.sum(~samples.done, dtype=jnp.int32) > enough)

    def turn(loop: tuple[Samples, jax.Array]) -> tuple[Samples, jax.Array]:
        samples, step = loop
        hidden, cache = model.decode(weights, samples.last, step - 1, prompt, samples.cache)
        uniform = _uniform(chances, step, shape, places)
        if places is not None:
            uniform = uniform.reshape(samples.last.shape)
        token, log_prob = _draw(model.logits(hidden), uniform, chances, settings)
        token = jnp.where(samples.done, settings.pad_id, token)
        log_prob = jnp.where(samples.done, 0, log_prob)
        first = jnp.int32(0)
        place = (first, first, step)  # All of one type, also in x64 mode.
        written = Samples(
            cache,
            token,
            samples.done | _is_end(token, settings),
            jax.lax.dynamic_update_slice(samples.tokens, token[..., None], place),
            jax.lax.dynamic_update_slice(samples.log_probs, log_prob[..., None], place),
        )
        return written, step + 1

    return jax.lax.while_loop(goes_on, turn, (samples, step))


def completions(tokens: jax.Array, log_probs: jax.Array, settings: Settings) -> Completions:
    """Those of samples of which each has come to an end or to its T tokens."""
    ended = _is_end(tokens, settings).astype(jnp.int32)
    return Completions(tokens, log_probs, jnp.cumsum(ended, axis=-1) == ended)


def _uniform(
    chances: Chances, step: ArrayLike, shape: tuple[int, int], places: jax.Array | None
) -> jax.Array:
    """Numbers in [0, 1) of the whole batch `[P, N]`, or of places in its shards."""
    drawn = jax.random.uniform(jax.random.fold_in(chances.key, step), shape, jnp.float32)
    if places is None:
        return drawn
    return jnp.take_along_axis(drawn.reshape(len(places), -1), places, axis=1, mode="clip")


def _draw(
    logits: jax.Array, uniform: jax.Array, chances: Chances, settings: Settings
) -> tuple[jax.Array, jax.Array]:
    """Tokens `[R, W]` and their log-probabilities, from logits `[R, W, V]`."""
    if settings.greedy:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        logits = truncate(logits / chances.temperature, top_k=settings.top_k, top_p=chances.top_p)
        token = sample(logits, uniform)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def _is_end(token: jax.Array, settings: Settings) -> jax.Array:
    return functools.reduce(operator.or_, [token == end for end in settings.ends])
