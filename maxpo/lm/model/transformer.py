"""A decoder-only language model in the shape of today's open ones (Llama, Qwen2, Qwen3)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo import parallel
from maxpo.lm.model import _attention, _layer, _packing, _rotary
from maxpo.lm.model._attention import KeysAndValues
from maxpo.lm.model._block_attention import PromptKeys
from maxpo.lm.model._layer import LayerWeights
from maxpo.lm.model._products import wide_einsum
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.policy import PackedStates
from maxpo.lm.model.prompts import Prompts, check_prompts, check_tokens
from maxpo.lm.model.sharding import PROMPT_CACHE, RULES, SAMPLE_CACHE

__all__ = ["Cache", "Layers", "PromptCache", "Transformer"]


class Layers(nnx.Module):
    """The parameters of all layers, stacked along a leading axis; see `LayerWeights`."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        group = c.heads // c.kv_heads

        def normal(std: float, *shape: int) -> nnx.Param:
            return nnx.Param(
                (std * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)
            )

        def ones(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.ones(shape, dtype))

        heads = (c.kv_heads, group + 2, c.head_width)
        attended = c.heads * c.head_width
        # Outputs to the residual stream add up over 2 L of them.
        depth = (2 * c.layers) ** -0.5
        self.attention_norm = ones(c.layers, c.hidden)
        self.qkv = normal(c.hidden**-0.5, c.layers, c.hidden, *heads)
        self.qkv_bias = (
            nnx.Param(jnp.zeros((c.layers, *heads), dtype)) if c.attention_bias else None
        )
        self.query_norm = ones(c.layers, c.head_width) if c.qk_norm else None
        self.key_norm = ones(c.layers, c.head_width) if c.qk_norm else None
        self.attention_out = normal(depth * attended**-0.5, c.layers, attended, c.hidden)
        self.mlp_norm = ones(c.layers, c.hidden)
        self.gate = normal(c.hidden**-0.5, c.layers, c.hidden, c.mlp)
        self.up = normal(c.hidden**-0.5, c.layers, c.hidden, c.mlp)
        self.down = normal(depth * c.mlp**-0.5, c.layers, c.mlp, c.hidden)
        self.adapters: Any = None  # Or `maxpo.lm.model.lora.Adapters`.

    def weights(self) -> LayerWeights:
        """All arrays, each with its leading axis of layers."""
        names = (name for name in LayerWeights._fields if name != "adapters")
        values: Any = {name: getattr(self, name) for name in names}
        arrays: Any = {name: None if x is None else x[...] for name, x in values.items()}
        return LayerWeights(
            **arrays, adapters={} if self.adapters is None else self.adapters.weights()
        )


Cache = tuple[KeysAndValues, ...]
"""Keys and values of each layer, arrays of their own so that a loop can write them in place."""


class PromptCache(NamedTuple):
    """What the completions of a prompt attend to, the same for the whole group.

    Attributes:
      layers: Keys and values of each layer, leading axis P.
      mask: `[P, S]` boolean, True at real tokens.
    """

    layers: Cache
    mask: jax.Array


class Transformer(nnx.Module):
    """RMSNorm, rotary positions, grouped-query attention and SwiGLU in a pre-norm decoder.

    Where a mask is False a token may be anything: no other token sees it. The states there are
    finite and mean nothing.
    """

    rules = RULES

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dtype, shape = jnp.dtype(config.param_dtype), (config.vocab_size, config.hidden)
        self.config = config
        self.embedding = nnx.Param(
            (0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)
        )
        self.layers = Layers(config, rngs=rngs)
        self.final_norm = nnx.Param(jnp.ones(config.hidden, dtype))
        self.output = (
            None
            if config.tied_embeddings
            else nnx.Param(
                (0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)
            )
        )

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.config.vocab_size

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits `[B, T, V]` of the token after each, float32; arguments as `hidden_states`."""
        return self.logits(self.hidden_states(tokens, mask))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]`, float32, of states `[..., D]` after the final norm."""
        unembedding = self.unembedding().astype(hidden.dtype)
        return wide_einsum("...d,vd->...v", hidden, unembedding)

    def unembedding(self) -> jax.Array:
        """The matrix `[V, D]` from states to logits, in `param_dtype`."""
        return (self.embedding if self.output is None else self.output)[...]

    def hidden_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """States after the final norm.

        Args:
          tokens: `[B, T]` integers.
          mask: `[B, T]` boolean, True at real tokens; padding on either side changes nothing.

        Returns:
          `[B, T, D]` in the dtype of the computation.

        Raises:
          TypeError, ValueError: If dtypes or shapes are others, or T exceeds the context.
        """
        check_tokens("tokens", tokens, mask, axes="BT")
        self.check_length(tokens.shape[1], 0)
        states, _ = self._run(tokens, mask, keep=False)
        return self._final(states)

    def completion_hidden_states(
        self, prompts: Prompts, tokens: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """States that predict each token of completions that are known (teacher forcing).

        Equal to `hidden_states` on each prompt followed by each completion, gradient included, but
        the prompt runs through the layers once for its group.

        Args:
          prompts: P prompts.
          tokens: `[P, N, T]` completions, padded at their end.
          mask: `[P, N, T]` boolean, True at real tokens.

        Returns:
          `[P, N, T, D]`; at t = 0 the state of the prompt's last token.

        Raises:
          TypeError, ValueError: If dtypes or shapes are others, or a length exceeds the context.
        """
        self._check_completions(prompts, tokens, mask)
        P, N, T = tokens.shape
        config = self.config

        # The last token of a completion predicts nothing. One must run, though: arrays without
        # elements are more trouble than they are worth.
        R = max(T - 1, 1)
        inputs = jnp.where(mask, tokens, 0)[..., :R].reshape(P * N, R)
        prompt_rotation = self._rotation(_attention.positions_of(prompts.mask))
        lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)
        positions = lengths[:, None] + jnp.arange(R, dtype=jnp.int32)[None]
        rotation = self._rotation(jnp.repeat(positions, N, axis=0))
        prompt_mask = _attention.causal_mask(prompts.mask)
        seen = jnp.concatenate(
            [
                jnp.broadcast_to(prompts.mask[:, None], (P, R, prompts.mask.shape[1])),
                jnp.broadcast_to(jnp.tril(jnp.ones((R, R), bool)), (P, R, R)),
            ],
            axis=-1,
        )
        seen = jnp.repeat(seen, N, axis=0)[:, None]

        def step(
            states: tuple[jax.Array, jax.Array], weights: LayerWeights
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            prompt, own = states
            query, prompt_key, prompt_value = _layer.project(
                config, weights, prompt, prompt_rotation
            )
            attended = _layer.attend(config, query, prompt_key, prompt_value, prompt_mask)
            prompt = _layer.finish(config, weights, prompt, attended)
            # Two attentions merged by their log-sum-exps would not need the copies, but JAX lets
            # no gradient through those. The copies live for one layer and are small next to it.
            query, key, value = _layer.project(config, weights, own, rotation)
            key = jnp.concatenate([jnp.repeat(prompt_key, N, axis=0), key], axis=1)
            value = jnp.concatenate([jnp.repeat(prompt_value, N, axis=0), value], axis=1)
            attended = _layer.attend(config, query, key, value, seen)
            return (prompt, _layer.finish(config, weights, own, attended)), None

        start = (self._embed(prompts.tokens, prompts.mask), self._embed(inputs, None))
        (prompt, own), _ = jax.lax.scan(
            jax.checkpoint(step) if config.remat else step, start, self.layers.weights()
        )
        last = _layer.last_token(prompt, prompts.mask)[:, None, None]
        last = jnp.broadcast_to(last, (P, N, 1, config.hidden))
        own = own.reshape(P, N, R, config.hidden)[:, :, : T - 1]
        return self._final(jnp.concatenate([last, own], axis=2))

    def packed_hidden_states(
        self, prompts: Prompts, tokens: jax.Array, mask: jax.Array, room: int
    ) -> PackedStates:
        """As `completion_hidden_states`, of real tokens alone; see `WithPacking`.

        Args:
          prompts: P prompts.
          tokens: `[P, N, T]` completions, padded at their end.
          mask: `[P, N, T]` boolean, True at real tokens.
          room: Tokens for which each device of `data` computes, at least as many as its samples
            have but for the last of each.

        Raises:
          TypeError, ValueError: As `completion_hidden_states`.
        """
        self._check_completions(prompts, tokens, mask)
        P, N, T = tokens.shape
        shards = parallel.batch_shards(P)
        config = self.config

        def cut(x: jax.Array) -> jax.Array:
            return parallel.constrain_batch(x.reshape(shards, -1, *x.shape[1:]))

        inputs = jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.int32) - 1, 0).reshape(shards, -1)
        layout = _packing.make_layouts(inputs, group_size=N, longest=max(T - 1, 1), room=room)
        row = layout.row
        read = jax.vmap(lambda x, sample, number: x[sample, number])
        own_tokens = read(cut(tokens.reshape(P * N, T)), row.sample, row.number)
        own_tokens = jnp.where(row.filled, own_tokens, 0)
        lengths = cut(jnp.sum(prompts.mask, axis=1, dtype=jnp.int32))
        positions = jax.vmap(lambda x, sample: x[sample // N])(lengths, row.sample) + row.number
        rotation = self._rotation(positions)
        prompt_rotation = self._rotation(_attention.positions_of(prompts.mask))
        prompt_mask = _attention.causal_mask(prompts.mask)

        def step(
            states: tuple[jax.Array, jax.Array], weights: LayerWeights
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            prompt, own = states
            query, key, value = _layer.project(config, weights, prompt, prompt_rotation)
            attended = _layer.attend(config, query, key, value, prompt_mask)
            prompt = _layer.finish(config, weights, prompt, attended)
            # Not constrained, so that a mesh may keep the heads cut over `model`.
            seen = (jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2), jnp.asarray(prompts.mask))
            of_prompts = PromptKeys(*(x.reshape(shards, -1, *x.shape[1:]) for x in seen))
            query, key, value = _layer.project(config, weights, own, rotation)
            attended = _packing.packed_attention(query, key, value, of_prompts, layout)
            return (prompt, _layer.finish(config, weights, own, attended)), None

        start = (self._embed(prompts.tokens, prompts.mask), self._embed(own_tokens, None))
        (prompt, own), _ = jax.lax.scan(
            jax.checkpoint(step) if config.remat else step, start, self.layers.weights()
        )
        last = cut(jnp.repeat(_layer.last_token(prompt, prompts.mask), N, axis=0))
        states = self._final(jnp.concatenate([last, own], axis=1))
        return PackedStates(states, _packing.predicted(cut(mask.reshape(P * N, T)), row))

    def prefill(self, prompts: Prompts) -> tuple[PromptCache, jax.Array]:
        """Runs prompts: what their completions attend to, and the states `[P, D]` that start them.

        The prompts are taken as checked.
        """
        states, kept = self._run(*prompts, keep=True)
        assert kept is not None
        stacked = _attention.for_decoding(*kept)
        layers = tuple(
            KeysAndValues(stacked.keys[i], stacked.values[i]) for i in range(self.config.layers)
        )
        layers = parallel.constrain(layers, *PROMPT_CACHE)
        last = self._final(_layer.last_token(states, prompts.mask))
        return PromptCache(layers, prompts.mask), last

    def empty_cache(self, prompts: int, group_size: int, length: int) -> Cache:
        """Room for the keys and values of `length` tokens of every sample."""
        c = self.config
        heads = (prompts, group_size, c.kv_heads)
        cache = tuple(
            KeysAndValues(
                jnp.zeros((*heads, c.head_width, length), c.dtype),
                jnp.zeros((*heads, length, c.head_width), c.dtype),
            )
            for _ in range(c.layers)
        )
        return parallel.constrain(cache, *SAMPLE_CACHE)

    def cache_length_axes(self) -> tuple[KeysAndValues, ...]:
        """The axes of tokens in `empty_cache`."""
        return (KeysAndValues._make((4, 3)),) * self.config.layers

    def decoding_weights(self) -> tuple[LayerWeights, ...]:
        """The arrays of each layer by themselves, in the dtype of the computation.

        To be called outside of the loop that decodes, which then casts and slices nothing.
        """
        stacked = self.layers.weights()
        stacked = jax.tree.map(lambda x: x.astype(self.config.dtype), stacked)

        def layer(i: int) -> LayerWeights:
            return jax.tree.map(lambda x: x[i], stacked)

        return tuple(map(layer, range(self.config.layers)))

    def decode(
        self,
        layers: Sequence[LayerWeights],
        tokens: jax.Array,
        step: jax.Array,
        prompt: PromptCache,
        own: Cache,
    ) -> tuple[jax.Array, Cache]:
        """Runs one more token of every sample.

        Args:
          layers: From `decoding_weights`.
          tokens: `[P, N]`, the completions' tokens number `step`.
          step: Scalar, counted from 0.
          prompt: From `prefill`.
          own: Keys and values of the tokens before, from `empty_cache` at first.

        Returns:
          States `[P, N, D]` after the final norm, and the cache with this token in it.
        """
        config = self.config
        lengths = jnp.sum(prompt.mask, axis=1, dtype=jnp.int32)
        rotation = self._rotation(lengths[:, None] + step)
        exist = jnp.arange(own[0].keys.shape[-1], dtype=step.dtype) <= step
        states = self._embed(tokens, None)
        written = []
        for weights, of_prompt, before in zip(layers, prompt.layers, own, strict=True):
            query, key, value = _layer.project(config, weights, states, rotation)
            cache = KeysAndValues(
                jax.lax.dynamic_update_slice_in_dim(before.keys, key[..., None], step, axis=4),
                jax.lax.dynamic_update_slice_in_dim(
                    before.values, value[..., None, :], step, axis=3
                ),
            )
            attended = _attention.shared_prefix_attention(
                query, of_prompt, cache, prompt.mask, exist
            )
            states = _layer.finish(config, weights, states, attended)
            written.append(cache)
        return self._final(states), tuple(written)

    def check_length(self, prompt: int, completion: int) -> None:
        """Raises ValueError if a prompt and a completion of these lengths exceed the context."""
        if prompt + completion > self.config.context_length:
            tokens = f"{prompt} + {completion}" if completion else f"{prompt}"
            raise ValueError(
                f"expected at most context_length = {self.config.context_length} tokens in prompt "
                f"and completion, got {tokens}"
            )

    def _check_completions(self, prompts: Prompts, tokens: jax.Array, mask: jax.Array) -> None:
        check_prompts(prompts)
        check_tokens("completions", tokens, mask, axes="PNT")
        P, _, T = tokens.shape
        if prompts.tokens.shape[0] != P:
            raise ValueError(
                f"expected one group of completions for each prompt, got {P} groups for "
                f"{prompts.tokens.shape[0]} prompts"
            )
        self.check_length(prompts.tokens.shape[1], T)

    def _run(
        self, tokens: jax.Array, mask: jax.Array, *, keep: bool
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """States before the final norm, and the stacked keys and values if they are to be kept."""
        config = self.config
        rotation = self._rotation(_attention.positions_of(mask))
        seen = _attention.causal_mask(mask)
        # What is kept is sampled from, and is not differentiated.
        attend = _attention.attention if keep else partial(_layer.attend, config)

        def step(
            states: jax.Array, weights: LayerWeights
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
            query, key, value = _layer.project(config, weights, states, rotation)
            attended = attend(query, key, value, seen)
            return _layer.finish(config, weights, states, attended), (key, value) if keep else None

        return jax.lax.scan(
            jax.checkpoint(step) if config.remat else step,
            self._embed(tokens, mask),
            self.layers.weights(),
        )

    def _embed(self, tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
        if mask is not None:
            tokens = jnp.where(mask, tokens, 0)
        return parallel.constrain_batch(self.embedding[...][tokens].astype(self.config.dtype))

    def _rotation(self, positions: jax.Array) -> _rotary.Rotation:
        c = self.config
        frequencies = _rotary.frequencies(c.head_width, c.rope_theta, c.rope_scaling)
        return _rotary.rotation(positions, frequencies)

    def _final(self, states: jax.Array) -> jax.Array:
        return _attention.rms_norm(states, self.final_norm[...], self.config.norm_epsilon)
