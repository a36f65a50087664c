"""Run by test_sharded_optimizers.py on 8 simulated devices; prints one line an optimizer."""

import json
import sys
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel, training
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.sharding import RULES, layout
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training.optimizer import make_optimizer

SHAPE = {"vocab_size": 136, "context_length": 8, "hidden": 128, "layers": 2}
SHAPE |= {"heads": 8, "kv_heads": 4, "mlp": 144}


def steps(params, gradients, optimizer, place):
    """Parameters after a step with each of the gradients, and the bytes of a device's arguments."""

    @jax.jit
    def step(state, gradient):
        state = training.apply_gradients(state, gradient, optimizer)
        return parallel.constrain_to(state, place(state))

    state = training.init_state(params, optimizer)
    state = parallel.shard(state, place(state))
    gradients = [parallel.shard(gradient, place(gradient)) for gradient in gradients]
    compiled = step.lower(state, gradients[0]).compile()
    for gradient in gradients:
        state = compiled(state, gradient)
    memory = compiled.memory_analysis()
    return jax.tree.map(np.asarray, state.params), memory.argument_size_in_bytes


def main(specs):
    params = nnx.state(Transformer(TransformerConfig(**SHAPE), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        for _ in range(2)
    ]
    place = partial(layout, rules=RULES, fully_sharded=True)
    for spec in specs:
        settings = {"optimizer": spec, "max_gradient_norm": 1.0, "b2": 0.95, "weight_decay": 0.1}
        optimizer = make_optimizer(ConfigDict(settings), 1e-2, rules=RULES)
        alone, _ = steps(params, gradients, optimizer, place)
        with parallel.use(parallel.make_mesh(4, 2)):
            spread, arguments = steps(params, gradients, optimizer, place)
        pairs = zip(*map(jax.tree.leaves, (alone, spread, params)), strict=True)
        errors, changes = zip(
            *((np.abs(x - y).max(), np.abs(x - z).max()) for x, y, z in pairs), strict=True
        )
        found = {"error": max(errors), "least change": min(changes)}
        found = {name: float(value) for name, value in found.items()}
        print(json.dumps({"optimizer": spec, "arguments": arguments, **found}))


if __name__ == "__main__":
    main(sys.argv[1:])
