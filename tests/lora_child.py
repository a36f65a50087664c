"""Run by test_sharded_lora.py on 4 simulated devices; prints one line."""

import json
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.lora import LoRA, adapt, merged
from maxpo.lm.model.policy import trainable
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.sharding import RULES, layout
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training import update
from maxpo.lm.training.initial_state import make_initial_state
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.runs import load_config

SHAPE = {"vocab_size": 16, "context_length": 8, "hidden": 16, "layers": 2}
SHAPE |= {"heads": 4, "kv_heads": 2, "mlp": 24}
RANK = 2


def make_batch():
    rng = np.random.default_rng(0)
    P, N, S, T = 4, 2, 3, 3
    mask = np.ones((P, N, T), bool)
    tokens = rng.integers(0, 16, (P, N, T))
    log_probs = np.full((P, N, T), -1.0, np.float32)
    rewards = rng.normal(size=(P, N)).astype(np.float32)
    every = np.ones((P, N), bool)
    prompts = Prompts(rng.integers(0, 16, (P, S)), np.ones((P, S), bool))
    return update.Batch(prompts, Completions(tokens, log_probs, mask), rewards, every, every)


def train(rl: ConfigDict):
    """Adapters after two updates, the matrices with them, and the bytes of a device's arguments."""
    place = partial(layout, rules=RULES, fully_sharded=True)
    model = Transformer(TransformerConfig(**SHAPE), rngs=nnx.Rngs(0))
    graph, params, frozen = trainable(adapt(model, LoRA(RANK), jax.random.key(1)))
    frozen = parallel.shard(frozen, place(frozen))
    optimizer = partial(make_optimizer, rl, rules=RULES)
    state = make_initial_state(params, optimizer(0.1), layout=place)
    advance = update.make_update(
        graph,
        rl,
        lambda rewards, where, step, method, success_rate: rewards,
        optimizer=optimizer,
        layout=place,
        frozen=frozen,
    )
    batch = parallel.shard_batch(make_batch())
    for step in range(2):
        state, _, _ = advance(state, batch, jax.random.key(0), step=step, learning_rate=0.1)
    whole = merged(nnx.merge(graph, state.params, frozen))
    held = sum(
        array.addressable_shards[0].data.nbytes for array in jax.tree.leaves((state.params, frozen))
    )
    return jax.tree.map(np.asarray, (state.params, whole)), held


def main():
    rl = load_config("configs/lm.py").rl
    rl.update(warmup_steps=0, micro_batches=2)
    alone, bytes_alone = train(rl)
    with parallel.use(parallel.make_mesh(2, 2)):
        spread, bytes_spread = train(rl)
    errors = [
        np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (alone, spread)), strict=True)
    ]
    moved = [np.abs(x).max() for path, x in nnx.to_flat_state(spread[0]) if path[-1][-1] == "b"]
    found = {"error": max(errors), "least change": min(moved)}
    found = {name: float(value) for name, value in found.items()}
    print(json.dumps({**found, "part": bytes_spread / bytes_alone}))


if __name__ == "__main__":
    main()
