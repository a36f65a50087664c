"""Small runs of every experiment, for tests that start them on several devices or processes.

    python tests/parallel_child.py FOLDER

does all of them on the devices at hand and leaves their last parameters in FOLDER.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from flax import nnx

from experiments import bandit, lm, maze
from maxpo import parallel, runs, training
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.training import stages, update
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.settings import layout, make_settings
from maxpo.runs import load_config

MESHES = {
    "data": {"model": 1},
    "tensor": {"model": 4},
    "fully_sharded": {"data": 4, "model": 2, "fully_sharded": True},
}
METHOD = "maxpo_k2-seed0"
STEPS = 4


def make_lm_config(folder, *, packing=True, **mesh):
    """Sums of two digits by a model of two layers; every part of the trainer is switched on."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"question": f"{i % 10}+{i // 10}=", "answer": str(i % 10 + i // 10)})
        for i in range(100)
    ]
    for name, part in (("train", lines[::2]), ("held_out", lines[1::6])):
        if not (folder / f"{name}.jsonl").exists():
            (folder / f"{name}.jsonl").write_text("\n".join(part))
    config = load_config("configs/lm.py:jsonl")
    config.seeds, config.methods = 1, ("maxpo:k=2",)
    config.task.train_path = str(folder / "train.jsonl")
    config.task.held_out_path = str(folder / "held_out.jsonl")
    config.model.overrides.update(hidden=16, layers=2, heads=8, kv_heads=4, mlp=24)
    config.model.vocab_size = 24
    config.mesh.update(mesh)
    config.sft.update(steps=STEPS, batch_size=8, log_every=2, save_every=2)
    config.rl.update(steps=STEPS, prompts=32, group_size=4, max_new_tokens=3, eval_k=2)
    config.rl.update(save_every=1, loss="clipped_ratio", minibatches=2, micro_batches=2)
    config.rl.update(entropy_coefficient=0.01, sampling_batches=2, packing=packing)
    config.evaluation.update(samples=4, prompts=16)
    config.verification.update(workers=1, time_limit=5.0)
    config.diagnostics.update(gradient_variance=2, prompts=8)
    return config


def get_config(variant=""):
    """What `--config` of this file is; the paths come from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        return make_lm_config(Path(folder))


def last_state(config, folder, name=METHOD):
    """The training state that a finished run of the language model has left, where it belongs."""
    with parallel.use(parallel.make_mesh(config.mesh.data, config.mesh.model)):
        params = stages.Programs(make_settings(config)).params
        state = training.init_state(params, make_optimizer(config.rl, 1.0, rules=stages.RULES))
        like = parallel.shard(state, layout(config, state))
        stored = json.loads((folder / name / "config.json").read_text())
        with runs.Run(stored, folder / name) as run:
            found, step = run.last_state(like)
    assert step == config.rl.steps
    return found


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def run_lm(folder, name="one", **settings):
    config = make_lm_config(folder / "inputs", **settings)
    lm.train_and_evaluate(config, folder / name)
    return leaves(last_state(config, folder / name).params)


def run_bandit(folder):
    config = load_config("configs/bandit.py:quick")
    # Few updates: sooner or later rounding decides between two arms, and from there runs differ.
    config.seeds, config.updates, config.evaluate_every = 8, 4, 2
    return _states(bandit, config, folder / "bandit")


def run_maze(folder):
    config = load_config("configs/maze.py:quick")
    config.seeds, config.updates, config.evaluate_every = 8, 4, 4
    config.methods = ("maxpo:k=8",)
    config.sweep.update(learning_rates=(1e-2,), seeds=8, updates=4)
    config.task.update(size=7, horizon=8)
    config.mazes, config.evaluation.mazes, config.evaluation.samples = 4, 4, 8
    config.evaluation.curve_samples = 8
    return _states(maze, config, folder / "maze")


def _states(experiment, config, folder):
    """The state that an experiment saved last, and over how many devices it was spread."""
    saved = []
    with mock.patch.object(runs.Run, "save", lambda run, step, state: saved.append(state)):
        experiment.train_and_evaluate(config, folder)
    params = [leaf for leaf in jax.tree.leaves(saved[-1]) if leaf.ndim > 1]
    spread = {len(leaf.sharding.device_set) for leaf in params}
    return leaves(params), spread


def check_layouts(folder):
    """An update leaves a state where it lay, and every matrix is cut as the table says."""
    config = make_lm_config(folder / "inputs", **MESHES["fully_sharded"])
    with parallel.use(parallel.make_mesh(4, 2)):
        state = last_state(config, folder / "fully_sharded")
        sharding = {
            name: variable.get_value().sharding.spec
            for (*_, name), variable in nnx.to_flat_state(state.params)
        }
        P = jax.sharding.PartitionSpec
        assert sharding["qkv"] == P(None, "data", "model", None, None), sharding
        assert sharding["down"] == P(None, "model", "data"), sharding
        assert sharding["mlp_norm"] == P(), sharding
        before = [(x.sharding, x.ndim) for x in jax.tree.leaves(state)]
        programs = stages.Programs(make_settings(config))
        batch = update.Batch(*_batch(config))
        after, *_ = programs.update(
            state,
            parallel.shard_batch(batch),
            jax.random.key(0),
            step=0,
            learning_rate=np.float32(1e-3),
        )
        for (expected, ndim), x in zip(before, jax.tree.leaves(after), strict=True):
            assert x.sharding.is_equivalent_to(expected, ndim), (x.sharding, expected)


def _batch(config):
    rl = config.rl
    shape = (rl.prompts, rl.group_size, rl.max_new_tokens)
    tokens, mask = np.ones(shape, np.int32), np.ones(shape, bool)
    prompts = Prompts(np.ones((rl.prompts, 4), np.int32), np.ones((rl.prompts, 4), bool))
    completions = Completions(tokens, np.zeros(shape, np.float32), mask)
    kept = mask[..., 0]
    return prompts, completions, np.ones(shape[:2], np.float32), kept, kept


def main(folder):
    assert jax.device_count() == 8
    # One of them with padding, as the run on one device that they are compared with.
    found = {
        name: run_lm(folder, name, packing=name != "data", **mesh) for name, mesh in MESHES.items()
    }
    check_layouts(folder)
    for name, run in (("bandit", run_bandit), ("maze", run_maze)):
        found[name], spread = run(folder / "eight")
        assert spread == {8}, (name, spread)
        # In this process, as another one may compile other programs, whose rounding differs.
        with mock.patch.object(parallel, "spread_runs", lambda keys: keys):
            found[f"{name} on one"], spread = run(folder / "one")
        assert spread == {1}, (name, spread)
    # Written on 8 x 1, read on 2 x 4.
    config = make_lm_config(folder / "inputs", data=2, model=4)
    again = leaves(last_state(config, folder / "data").params)
    for first, second in zip(found["data"], again, strict=True):
        np.testing.assert_array_equal(first, second)
    np.savez(
        folder / "parameters.npz",
        **{f"{name}/{i}": leaf for name, of_run in found.items() for i, leaf in enumerate(of_run)},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
