"""What an update costs where completions end early and late, with padding and packed.

An update is the gradient of the trainer's loss with respect to all parameters, without the
optimizer's step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training.packing import Packing, make_packing
from maxpo.lm.training.update import Batch, accumulated_gradient, loss_and_metrics
from maxpo.studies.speed.lm_lengths import Seconds, given_lengths, model_config

__all__ = ["PACKED", "PADDED", "update_calls", "update_table"]

PADDED, PACKED = "update with padding", "packed update"

# The unbiased loss in one step.
_LOSS = {
    "loss": "score_function",
    "importance_level": "token",
    "loss_aggregation": "constant",
    "length": 1.0,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "clip_dual": 0.0,
    "entropy_coefficient": 0.0,
    "temperature": 1.0,
    "epochs": 1,
    "minibatches": 1,
    "micro_batches": 1,
}


def update_calls(config: ConfigDict) -> dict[tuple[str, str], Callable[[], Any]]:
    """What is timed, by lengths and by how padding is dealt with."""
    graph, params = nnx.split(Transformer(model_config(config), rngs=nnx.Rngs(config.seed)))

    @partial(jax.jit, static_argnames=("room", "micro_batches"))
    def gradient(params: nnx.State, batch: Batch, *, room: int | None, micro_batches: int) -> Any:
        loss = partial(loss_and_metrics, graph, ConfigDict(_LOSS), room=room)
        return accumulated_gradient(loss, params, batch, micro_batches)

    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, lengths in given_lengths(config).items():
        run = partial(gradient, params, _batch(config, lengths))
        calls[name, PADDED] = partial(run, room=None, micro_batches=config.micro_batches)
        room = _packing(config, lengths, PACKED).room
        calls[name, PACKED] = partial(run, room=room, micro_batches=1)
    return calls


def update_table(config: ConfigDict, seconds: Seconds) -> dict[str, dict[str, float]]:
    """Rows by lengths: real tokens a second and the share of padding of both, and their ratio."""
    rows = {}
    for name, lengths in given_lengths(config).items():
        rates = {
            how: float(lengths.sum() / np.median(seconds[name, how])) for how in (PADDED, PACKED)
        }
        rows[f"update, {name} lengths"] = {
            "mean length": float(lengths.mean()),
            **{f"{how}, tokens/s": rate for how, rate in rates.items()},
            "ratio": rates[PACKED] / rates[PADDED],
            **{f"{how}, % padding": 100 * _packing(config, lengths, how).padding for how in rates},
        }
    return rows


def _packing(config: ConfigDict, lengths: np.ndarray, how: str) -> Packing:
    rl = ConfigDict({**_LOSS, "packing": how == PACKED})
    return make_packing(rl, jax.random.key(config.seed), _mask(config, lengths))


def _mask(config: ConfigDict, lengths: np.ndarray) -> np.ndarray:
    return np.arange(config.new_tokens) < lengths[..., None]


def _batch(config: ConfigDict, lengths: np.ndarray) -> Batch:
    """Random tokens of these lengths with random advantages."""
    rng, size = np.random.default_rng(config.seed), config.model.vocab_size
    of_prompts, mask = (config.prompts, config.prompt_length), _mask(config, lengths)
    prompts: Any = (rng.integers(0, size, of_prompts), np.ones(of_prompts, bool))
    tokens = np.where(mask, rng.integers(0, size, mask.shape), 0)
    completions: Any = (tokens, np.zeros(mask.shape, np.float32), mask)
    rewards: Any = rng.normal(size=lengths.shape).astype(np.float32)
    kept: Any = np.ones(lengths.shape, bool)
    groups = (Prompts(*prompts), Completions(*completions), rewards, kept, kept)
    return Batch(*groups, advantages=rewards)
