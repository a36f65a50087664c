"""Reads and writes checkpoints on meshes, for tests that start it on several devices or processes.

    python tests/checkpoint_child.py FOLDER [ADDRESS COUNT NUMBER]

checks the checkpoints in FOLDER/models on the devices at hand, and a training state of random
parameters, and prints a line of JSON.
"""

import json
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import parallel_child
from flax import nnx

from maxpo import parallel, runs
from maxpo.lm.model._safetensors import StoredTensor
from maxpo.lm.model.pretrained import load_config, load_pretrained, save_pretrained
from maxpo.lm.model.sharding import RULES, layout
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training.initial_state import make_initial_state
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.settings import layout as settings_layout
from maxpo.lm.training.settings import make_model, make_settings

MESHES = {
    "data": {"model": 1},
    "fully sharded": {"model": 1, "fully_sharded": True},
    "tensor": {"model": 2},
    "both": {"model": 2, "fully_sharded": True},
}


def load(folder, *, model, fully_sharded=False, **options):
    """What `load_pretrained` makes of a folder on a mesh, and how many bytes it asked for."""
    asked = [0]
    read = StoredTensor.read

    def counted(tensor, index):
        found = read(tensor, index)
        asked[0] += found.nbytes
        return found

    with mock.patch.object(StoredTensor, "read", counted):
        loaded = load_pretrained(folder, fully_sharded=fully_sharded, **options)
    return nnx.state(loaded), asked[0]


def check_layout(params, fully_sharded):
    """Each array lies where the table says."""
    specs = layout(params, RULES, fully_sharded=fully_sharded)
    for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs), strict=True):
        expected = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (leaf.sharding, expected)


def share_of_a_device(params):
    """The largest part of all bytes that one device of this process holds."""
    held = dict.fromkeys(jax.local_devices(), 0)
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def check_slices(whole, params):
    """The numbers of each device are those of the whole, bit for bit."""
    for expected, leaf in zip(whole, jax.tree.leaves(params), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])


def check(folder, name):
    """Reads a checkpoint on a mesh and writes it again; returns shares of bytes held and read."""
    options = MESHES[name]
    whole = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(load_pretrained(folder)))]
    with parallel.use(parallel.make_mesh(model=options["model"])):
        params, asked = load(folder, **options)
        check_layout(params, options.get("fully_sharded", False))
        check_slices(whole, params)
        model = nnx.eval_shape(lambda: Transformer(load_config(folder), rngs=nnx.Rngs(0)))
        stored = json.loads((folder / "config.json").read_text())["torch_dtype"]
        save_pretrained(nnx.merge(nnx.graphdef(model), params), folder / "again", dtype=stored)
        parallel.from_first_process("written")
    for file in ("model.safetensors", "config.json"):
        assert (folder / "again" / file).read_bytes() == (folder / file).read_bytes()
    size = (folder / "model.safetensors").stat().st_size
    return share_of_a_device(params), asked / size


def check_state(folder):
    """Makes a training state, saves it and reads it back; returns the share of bytes held."""
    config = parallel_child.make_lm_config(folder / "inputs", model=2, fully_sharded=True)
    config.model.overrides.update(hidden=64, mlp=96)
    settings, key = make_settings(config), jax.random.key(1)
    place = partial(settings_layout, config)
    whole = [np.asarray(leaf) for leaf in jax.tree.leaves(make_model(settings, key)[1])]

    def make(start):
        optimizer = make_optimizer(config.rl, 1.0, rules=RULES)
        return make_initial_state(start, optimizer, layout=place, problems=5)

    with parallel.use(parallel.make_mesh(model=2)):
        _, start = make_model(settings, key)
        check_layout(start, fully_sharded=True)
        check_slices(whole, start)
        state = make(start)
        check_layout(state, fully_sharded=True)
        share = share_of_a_device(state)
        with runs.Run({}, folder / "run") as run:
            run.restore(state)
            run.save(1, state)
        with runs.Run({}, folder / "run") as run:
            like = make(start)
            state, _ = run.restore(like, donate=True)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(like))
        check_layout(state, fully_sharded=True)
        check_slices(whole, state.params)
        check_slices(whole, start)  # It shares nothing with what was freed.
    return share


def main(folder, address=None, count=1, number=0):
    if address is not None:
        parallel.initialize(address, int(count), int(number))
    found = {
        f"{path.name} {name}": check(path, name)
        for path in sorted((Path(folder) / "models").iterdir())
        for name in MESHES
    }
    state = check_state(Path(folder) / "training")
    print(json.dumps({"checkpoints": found, "state": state}))


if __name__ == "__main__":
    main(*sys.argv[1:])
