"""Log-probabilities of tokens without an array of all tokens by the whole vocabulary.

At a vocabulary of 150k the logits of one batch are larger than the model. Here they exist for one
chunk of tokens at a time, in the forward and in the backward pass.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maxpo import parallel
from maxpo.lm.model._products import wide_einsum
from maxpo.lm.model.policy import Scored, WithLogits, WithPacking
from maxpo.lm.model.prompts import Prompts

__all__ = ["DEFAULT_CHUNK_SIZE", "TokenLogProbs", "completion_log_probs", "token_log_probs"]

DEFAULT_CHUNK_SIZE = 1024


class TokenLogProbs(NamedTuple):
    """What a policy thinks of tokens, and how sure it was.

    Attributes:
      log_probs: `[...]` float32, `log pi(token | past)`.
      entropy: `[...]` float32, of `pi(. | past)`, in nats.
    """

    log_probs: jax.Array
    entropy: jax.Array


def token_log_probs(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> TokenLogProbs:
    """Log-probabilities of tokens and entropies of their distributions.

        log_probs = log softmax(hidden unembedding^T / temperature)[target]

    in float32, in chunks of tokens. The backward pass computes each chunk's logits once more. Both
    results are differentiable in `hidden` and `unembedding`; no gradient flows into `temperature`.

    Args:
      hidden: `[..., D]` states, in the dtype in which the products are computed.
      unembedding: `[V, D]`, cast to the dtype of `hidden`. Its gradient adds up in float32.
      targets: `[...]` integers in [0, V).
      temperature: Divides the logits; positive.
      chunk_size: Tokens whose logits exist at the same time, on each device over which a mesh
        spreads the batch: `chunk_size * V` floats, a few times.

    Returns:
      Both `[...]`, float32.

    Raises:
      TypeError: If `targets` are not integers.
      ValueError: If shapes do not match, or a chunk size or temperature is not positive.

    >>> uniform = token_log_probs(jnp.zeros((2, 3)), jnp.ones((4, 3)), jnp.array([0, 3]))
    >>> print(jnp.exp(uniform.log_probs), jnp.exp(uniform.entropy))
    [0.25 0.25] [4. 4.]
    """
    hidden, unembedding, targets = (jnp.asarray(x) for x in (hidden, unembedding, targets))
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"expected targets to be integers, got {targets.dtype}")
    if unembedding.ndim != 2 or hidden.shape[-1:] != unembedding.shape[1:]:
        raise ValueError(
            "expected hidden [..., D] and unembedding [V, D] with the same D, got "
            f"{list(hidden.shape)} and {list(unembedding.shape)}"
        )
    if targets.shape != hidden.shape[:-1] or not targets.size:
        raise ValueError(
            f"expected targets of the shape {list(hidden.shape[:-1])} of the states, at least "
            f"one, got {list(targets.shape)}"
        )
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"expected chunk_size to be a positive integer, got {chunk_size!r}")
    if (
        not isinstance(temperature, jax.core.Tracer) and not np.asarray(temperature) > 0
    ):  # NaN, too.
        raise ValueError(f"expected a positive temperature, got {temperature!r}")

    count, chunk_size = targets.size, chunk_size * parallel.data_size()
    chunks = -(-count // chunk_size)
    rows = -(-count // chunks)

    def fold(x: jax.Array, *tail: int) -> jax.Array:
        """`[count, ...]` to `[chunks, rows, ...]`; a chunk takes every `chunks`-th token."""
        x = jnp.pad(x.reshape(count, *tail), [(0, rows * chunks - count), *[(0, 0)] * len(tail)])
        # Strided, so that a batch that is spread over devices stays spread in every chunk.
        return jnp.swapaxes(x.reshape(rows, chunks, *tail), 0, 1)

    results = _chunked(
        fold(hidden, hidden.shape[-1]), unembedding, fold(targets), jnp.float32(temperature)
    )
    return TokenLogProbs(
        *(jnp.swapaxes(x, 0, 1).reshape(-1)[:count].reshape(targets.shape) for x in results)
    )


def completion_log_probs(
    model: Scored,
    prompts: Prompts,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    room: int | None = None,
) -> TokenLogProbs:
    """Log-probabilities of completions under a model, by teacher forcing.

    Differentiable in the model's parameters. A `Transformer` runs each prompt once for its group.

    Args:
      model: The policy.
      prompts: P prompts.
      tokens: `[P, N, T]` completions, padded at their end.
      mask: `[P, N, T]` boolean, True at real tokens.
      temperature: As in `token_log_probs`; that of the sampling, to score its distribution.
      chunk_size: As in `token_log_probs`.
      room: Compute for so many tokens on each device and for no padding beyond them, see
        `WithPacking`; the same to rounding. All must find room: what does not is lost. None: for
        all `P N T`.

    Returns:
      Both `[P, N, T]`, float32; 0 where `mask` is False.

    Raises:
      TypeError, ValueError: As the policy's method and `token_log_probs`.
      TypeError: If there is a room and the policy is no `WithPacking`.
    """
    if room is not None:
        if not isinstance(model, WithPacking):
            raise TypeError(
                "room: expected a policy with the method packed_hidden_states, got "
                f"{type(model).__name__}"
            )
        states, places = model.packed_hidden_states(prompts, tokens, mask, room)
        targets = jnp.where(mask, tokens, 0).reshape(len(states), -1)
        found = token_log_probs(
            states,
            model.unembedding(),
            jax.vmap(lambda x, place: x.at[place].get(mode="clip"))(targets, places),
            temperature=temperature,
            chunk_size=chunk_size,
        )
        return TokenLogProbs(*(_unpacked(x, places, tokens.shape) for x in found))
    if isinstance(model, WithLogits):
        logits = model.completion_logits(prompts, tokens, mask)
        results = _of_logits(logits, jnp.where(mask, tokens, 0), temperature)
        return TokenLogProbs(*(jnp.where(mask, x, 0) for x in results))
    hidden = model.completion_hidden_states(prompts, tokens, mask)
    results = token_log_probs(
        hidden,
        model.unembedding(),
        jnp.where(mask, tokens, 0),
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return TokenLogProbs(*(jnp.where(mask, x, 0) for x in results))


def _unpacked(values: jax.Array, places: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Puts `[shards, E]` where they belong in an array of zeros."""
    zeros = jnp.zeros((len(places), math.prod(shape) // len(places)), values.dtype)
    put = jax.vmap(lambda x, place, value: x.at[place].set(value, mode="drop"))
    return put(zeros, places, values).reshape(shape)


def _of_logits(logits: jax.Array, targets: jax.Array, temperature: ArrayLike) -> TokenLogProbs:
    """As `token_log_probs`, of logits `[..., V]` that are there already."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / jnp.float32(temperature), axis=-1)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return TokenLogProbs(chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1))


def _logits(hidden: jax.Array, unembedding: jax.Array, temperature: jax.Array) -> jax.Array:
    logits = wide_einsum("rd,vd->rv", hidden, unembedding)
    return logits / temperature


@jax.custom_vjp
def _chunked(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies `[chunks, rows]`, one chunk after the other."""
    log_probs, entropy, _ = _forward(hidden, unembedding, targets, temperature)
    return log_probs, entropy


def _forward(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    narrow = unembedding.astype(hidden.dtype)

    def step(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits = _logits(chunk[0], narrow, temperature)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        log_p = logits - normalizer[:, None]
        chosen = jnp.take_along_axis(log_p, chunk[1][:, None], axis=-1)[:, 0]
        return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1), normalizer

    return jax.lax.map(step, (hidden, targets))


def _chunked_forward(hidden, unembedding, targets, temperature):  # type: ignore[no-untyped-def]
    log_probs, entropy, normalizer = _forward(hidden, unembedding, targets, temperature)
    saved = (hidden, unembedding, targets, temperature, normalizer, entropy)
    return (log_probs, entropy), saved


def _chunked_backward(saved, cotangents):  # type: ignore[no-untyped-def]
    """With `p = softmax(z)` and entropy `H`: d log p_y / dz = e_y - p, dH / dz = -p (log p + H)."""
    hidden, unembedding, targets, temperature, normalizer, entropy = saved
    narrow = unembedding.astype(hidden.dtype)

    def step(total, chunk):  # type: ignore[no-untyped-def]
        states, target, lse, H, of_log_prob, of_entropy = chunk
        log_p = _logits(states, narrow, temperature) - lse[:, None]
        slope = of_log_prob[:, None] + of_entropy[:, None] * (log_p + H[:, None])
        hit = jax.lax.broadcasted_iota(target.dtype, log_p.shape, 1) == target[:, None]
        of_logits = jnp.where(hit, of_log_prob[:, None], 0) - jnp.exp(log_p) * slope
        of_logits = (of_logits / temperature).astype(states.dtype)
        total += wide_einsum("rv,rd->vd", of_logits, states)
        of_states = wide_einsum("rv,vd->rd", of_logits, narrow).astype(states.dtype)
        return total, of_states

    total, of_hidden = jax.lax.scan(
        step,
        jnp.zeros(unembedding.shape, jnp.float32),
        (hidden, targets, normalizer, entropy, *cotangents),
    )
    return of_hidden, total.astype(unembedding.dtype), None, jnp.zeros_like(temperature)


_chunked.defvjp(_chunked_forward, _chunked_backward)
