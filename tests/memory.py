"""A policy that remembers all tokens, for tests of sampling."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maxpo.lm.model.policy import NO_LENGTH

VOCABULARY, WIDTH, RARE = 6, 4, 3


class Memory(nnx.Module):
    """A policy whose next token depends on the prompt, all tokens and their order.

    It compiles fast, and one of its caches has no axis of tokens.
    """

    vocab_size = VOCABULARY

    def __init__(self):
        draw = np.random.default_rng(0).normal
        self.table = nnx.Param(jnp.asarray(draw(size=(VOCABULARY, WIDTH)), jnp.float32))
        self.output = nnx.Param(jnp.asarray(draw(size=(VOCABULARY, WIDTH)), jnp.float32))

    def check_length(self, prompt, completion):
        pass

    def prefill(self, prompts):
        seen = jnp.where(prompts.mask[..., None], self.table[...][prompts.tokens], 0)
        prompt = jnp.sum(seen, axis=1)
        return prompt, jnp.tanh(prompt)

    def empty_cache(self, prompts, group_size, length):
        return {
            "tokens": jnp.zeros((prompts, group_size, length), jnp.int32),
            "state": jnp.zeros((prompts, group_size, WIDTH), jnp.float32),
        }

    def cache_length_axes(self):
        return {"tokens": 2, "state": NO_LENGTH}

    def decoding_weights(self):
        return self.table[...]

    def decode(self, weights, tokens, step, prompt, own):
        written = jax.lax.dynamic_update_slice_in_dim(own["tokens"], tokens[..., None], step, 2)
        exist = jnp.arange(written.shape[2], dtype=step.dtype) <= step
        state = jnp.tanh(0.5 * own["state"] + weights[tokens])
        counted = jnp.where(exist[None, None, :, None], weights[written], 0)
        hidden = state + jnp.tanh(prompt)[:, None] + 0.1 * jnp.sum(counted, axis=2)
        return hidden, {"tokens": written, "state": state}

    def logits(self, hidden):
        logits = 0.5 * jnp.einsum("...d,vd->...v", hidden, self.output[...])
        return logits.at[..., RARE].add(-1.0)
