"""The policy of the study: its shape, its random start, how it is sampled and its loss."""

from collections.abc import Callable

import jax
from flax import nnx
from ml_collections import ConfigDict

from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.model.generation import generate
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.transformer import Transformer
from maxpo.studies.lm_centering.puzzle import TOKENIZER, all_puzzles

__all__ = ["Draw", "loss_settings", "make_draw", "make_policies", "model_shape"]

Draw = Callable[[nnx.State, Prompts, int, jax.Array], Completions]
"""(Parameters, P prompts, N, key) to completions `[P, N, digits + 1]`."""

# Each batch has one step of the unbiased loss; the clipping is that of diagnostics.
_ONE_STEP = {
    "loss": "score_function",
    "importance_level": "token",
    "loss_aggregation": "constant",
    "length": 1.0,
    "epochs": 1,
    "minibatches": 1,
    "micro_batches": 1,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "clip_dual": 0.0,
    "entropy_coefficient": 0.0,
}


def model_shape(config: ConfigDict) -> TransformerConfig:
    """The shape of the policy, whose context is a prompt and an answer.

    Raises:
      ValueError: As `make_config`.
    """
    prompt = all_puzzles(config.puzzle.least, config.puzzle.least).prompts
    return make_config(
        "nano",
        vocab_size=TOKENIZER.vocab_size,
        context_length=prompt.tokens.shape[1] + config.puzzle.digits + 1,
        **config.model,
    )


def make_policies(config: ConfigDict, keys: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
    """The policy's structure, and random parameters `[S, ...]` from S keys."""
    shape = model_shape(config)

    def init(key: jax.Array) -> Transformer:
        return Transformer(shape, rngs=nnx.Rngs(key))

    params = jax.jit(jax.vmap(lambda key: nnx.state(init(key))))(keys)
    return nnx.graphdef(nnx.eval_shape(init, keys[0])), params


def make_draw(config: ConfigDict, graph: nnx.GraphDef) -> Draw:
    """The function that samples answers at the temperature of the config."""

    def draw(params: nnx.State, prompts: Prompts, group_size: int, key: jax.Array) -> Completions:
        return generate(
            nnx.merge(graph, params),
            prompts,
            group_size=group_size,
            max_new_tokens=config.puzzle.digits + 1,
            temperature=config.rl.temperature,
            eos_id=TOKENIZER.eos_id,
            pad_id=TOKENIZER.pad_id,
            key=key,
        )

    return draw


def loss_settings(config: ConfigDict) -> ConfigDict:
    """The `rl` of the config with the settings of the trainer's loss."""
    return ConfigDict({**config.rl, **_ONE_STEP})
