"""Checkpoints on meshes: each device reads its slices, and what they write is what was read."""

import dataclasses
import json

import checkpoint_child
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simulated_devices
from flax import nnx

from maxpo.lm.model._safetensors import copy
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.pretrained import save_pretrained
from maxpo.lm.model.transformer import Transformer

pytest.importorskip("safetensors.numpy")

LLAMA = TransformerConfig(
    vocab_size=256,
    context_length=16,
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    mlp=96,
    tied_embeddings=False,
)
CONFIGS = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, tied_embeddings=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=24, param_dtype="bfloat16"),
}


def distinct(config):
    """A model none of whose numbers comes twice in a parameter, so that a slice is that slice."""
    graph, state = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    numbers = [jnp.asarray(rng.permutation(x.size).reshape(x.shape), x.dtype) for x in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, numbers))


def write(folder, *names):
    """Checkpoints of these architectures."""
    for name in names:
        save_pretrained(distinct(CONFIGS[name]), folder / "models" / name)


def run(folder, **counts):
    """What each process has found."""
    outputs = simulated_devices.outputs(checkpoint_child.__file__, folder, **counts)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def part_of(name, devices):
    """Of all bytes the part that a device holds by the layout, but for vectors."""
    mesh = name.split(maxsplit=1)[1]
    return {"data": 1, "tensor": 1 / 2}.get(mesh, 1 / devices)


@pytest.mark.slow
def test_eight_devices_read_and_make_their_slices(tmp_path):
    """The child compares them with the whole, and what it writes with what it read."""
    write(tmp_path, *CONFIGS)
    (found,) = run(tmp_path, devices=8)
    assert len(found["checkpoints"]) == len(CONFIGS) * len(checkpoint_child.MESHES)
    for name, (held, read) in found["checkpoints"].items():
        part = part_of(name, 8)
        assert part <= held <= part + 0.05, name
        # A slice of several devices is read once for all of them.
        assert 0.95 <= read <= 1, name
    assert 1 / 8 <= found["state"] <= 1 / 8 + 0.05


@pytest.mark.slow
def test_four_processes_read_and_write_a_quarter_each(tmp_path):
    write(tmp_path, "qwen3")
    for found in run(tmp_path, devices=1, processes=4):
        for name, (held, read) in found["checkpoints"].items():
            part = part_of(name, 4)
            assert part <= held <= part + 0.05, name
            assert 0.95 * part <= read <= part + 0.05, name
        assert 1 / 4 <= found["state"] <= 1 / 4 + 0.05
    # Each process has written its own shards of the training state.
    (state,) = (tmp_path / "training" / "run" / "checkpoints").glob("1/state")
    sizes = [
        sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        for part in sorted(state.glob("ocdbt.process_*"))
    ]
    assert len(sizes) == 4
    assert max(sizes) < 0.35 * sum(sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), (5, 130), (130, 5), (2, 3, 70, 9)])
def test_copies_are_transposed_and_cast(shape, dtype):
    numbers = np.random.default_rng(0).normal(size=shape).astype(dtype)
    rows = np.zeros(shape, np.float32)
    columns = np.moveaxis(np.zeros((shape[-1], *shape[:-1]), np.float32), 0, -1)
    for target in (rows, columns):
        copy(target, numbers)
        np.testing.assert_array_equal(target, numbers.astype(np.float32))
    copy(rows, 2 * columns)
    np.testing.assert_array_equal(rows, 2 * columns)
