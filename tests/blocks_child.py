"""Samples in blocks on a mesh of four simulated devices; fails unless that changes nothing.

    python tests/blocks_child.py [ADDRESS COUNT NUMBER]

with the address of the first process, how many there are, and the number of this one.
"""

import sys

import jax
import numpy as np
from flax import nnx

from maxpo import parallel
from maxpo.lm.model import _blocks, _rows
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.generation import generate
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.sharding import RULES, layout
from maxpo.lm.model.transformer import Transformer

P, V = 4, 6
CONFIG = TransformerConfig(
    V, context_length=24, hidden=16, layers=1, heads=4, kv_heads=2, mlp=16, tied_embeddings=False
)


def main(*process):
    if process:
        address, count, number = process
        parallel.initialize(address, int(count), int(number))
    _blocks.BLOCK, _rows._SAMPLE_COST = 4, 4
    moves = []
    move = _rows.move

    def seen(*arguments, **options):
        moves.append(move(*arguments, **options))
        return moves[-1]

    _rows.move = seen
    graph, state = nnx.split(Transformer(CONFIG, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda x: 4 * x if x.ndim == 2 else x, state)  # Likely and unlikely ends.
    tokens = np.array([[1, 2, 0], [2, 2, 1], [0, 1, 5], [4, 4, 4]], np.int32)
    prompts = Prompts(tokens, np.ones(tokens.shape, bool))

    def draw(state, prompts):
        model = nnx.merge(graph, state)
        key = jax.random.key(1)
        return generate(model, prompts, group_size=8, max_new_tokens=13, eos_id=3, key=key)

    expected = jax.jit(draw)(state, prompts)
    lengths = expected.mask.sum(axis=-1)
    assert lengths.min() < 5 < 9 < lengths.max(), lengths
    with parallel.use(parallel.make_mesh(data=2, model=2)):
        state = parallel.shard(state, layout(state, RULES, fully_sharded=True))
        found = parallel.fetch(draw(state, parallel.shard_batch(prompts)))
        check_that_moves_stay_in_their_shards()
    assert any(moves), "nothing was moved"
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5)


def check_that_moves_stay_in_their_shards():
    """The program that moves a cache sends nothing from one device to another."""
    spec = jax.sharding.PartitionSpec("data", None, "model")
    cache = parallel.shard(np.zeros((P, 8, 2, 4, 5), np.float32), spec)
    source = np.zeros((2, 4, 1), np.int32)
    program = _rows.taken.lower(cache, source, leading=2).compile()
    assert program.output_shardings.spec[0] == "data", program.output_shardings
    for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert name not in program.as_text(), program.as_text()


if __name__ == "__main__":
    main(*sys.argv[1:])
