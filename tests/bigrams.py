"""A policy whose log-probabilities are a table, for oracles in NumPy."""

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, WIDTH = 7, 4


class Bigrams(nnx.Module):
    """The next token depends on the last one alone."""

    def __init__(self, *, rngs):
        self.states = nnx.Param(jax.random.normal(rngs.params(), (VOCABULARY, WIDTH)))
        self.output = nnx.Param(jax.random.normal(rngs.params(), (VOCABULARY, WIDTH)))

    def completion_hidden_states(self, prompts, tokens, mask):
        last = jnp.broadcast_to(prompts.tokens[:, None, -1:], (*tokens.shape[:2], 1))
        return self.states[...][jnp.concatenate([last, tokens[..., :-1]], axis=-1)]

    def unembedding(self):
        return self.output[...]
