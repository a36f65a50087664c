"""Eight simulated devices train what one trains."""

import jax
import numpy as np
import parallel_child
import pytest
import simulated_devices

from maxpo import parallel
from maxpo.lm.training.settings import make_settings
from maxpo.runs import read_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder that a process with eight devices has left, and the parameters in it."""
    folder = tmp_path_factory.mktemp("devices") / "eight"
    simulated_devices.outputs(parallel_child.__file__, folder, devices=8)
    with np.load(folder / "parameters.npz") as stored:
        found = dict(stored)
    return folder, found


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory):
    """Where one device trains."""
    return tmp_path_factory.mktemp("devices") / "one"


@pytest.fixture(scope="module")
def alone(folder_of_one):
    """The parameters of the language model that one device trains."""
    return parallel_child.run_lm(folder_of_one, packing=False)


def of_run(found, name):
    count = sum(key.startswith(f"{name}/") for key in found)
    return [found[f"{name}/{number}"] for number in range(count)]


def assert_close(found, expected, name):
    """Sums of float32 in another order; Adam divides by the gradient's size and magnifies that."""
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", parallel_child.MESHES)
def test_language_model(trained, alone, name):
    assert_close(of_run(trained[1], name), alone, name)


def measured(folder):
    """What the steps of the language model's run say of the variance of gradients."""
    rows = read_metrics(folder / parallel_child.METHOD)
    return [
        {name: value for name, value in row.items() if "variance_" in name and "groups" not in name}
        for row in rows
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", parallel_child.MESHES)
def test_variances_of_gradients(trained, folder_of_one, name):
    expected = measured(folder_of_one / "one")
    assert [len(row) for row in expected] == [1, 5, 1, 5]
    for ours, theirs in zip(measured(trained[0] / name), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, nan_ok=True)
    assert all(row["gradient_variance_maxpo"] > 0 for row in expected[1::2])


@pytest.mark.slow
def test_training_changes_more_than_the_tolerance(alone, tmp_path):
    config = parallel_child.make_lm_config(tmp_path)
    start = parallel_child.leaves(parallel_child.stages.Programs(make_settings(config)).params)
    changes = [np.abs(x - y).max() for x, y in zip(alone, start, strict=True)]
    assert min(changes) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bandit", "maze"])
def test_independent_runs(trained, name):
    assert_close(of_run(trained[1], name), of_run(trained[1], f"{name} on one"), name)


@pytest.mark.slow
def test_one_device_reads_the_checkpoint_of_eight(trained):
    folder, found = trained
    config = parallel_child.make_lm_config(folder / "inputs")
    state = parallel_child.last_state(config, folder / "data")
    for ours, theirs in zip(
        parallel_child.leaves(state.params), of_run(found, "data"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("data", "model"), [(0, 2), (2, 1), (-1, 1), (0, 0), (2, 2)])
def test_a_mesh_of_other_devices(data, model):
    assert jax.device_count() == 1
    with pytest.raises(
        ValueError, match=f"number of devices, 1, .* data = {data}, model = {model}"
    ):
        parallel.make_mesh(data, model)


def test_without_a_mesh_nothing_changes():
    tree = {"qkv": np.zeros((2, 3)), "b": np.arange(3)}
    assert parallel.shard(tree, None) is tree
    assert parallel.shard_batch(tree) is tree
    with parallel.use(parallel.make_mesh()):
        assert parallel.constrain_batch(tree) is tree
        assert parallel.my_share(3).tolist() == [0, 1, 2]


def test_batches_that_do_not_divide_are_named():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    with jax.sharding.use_abstract_mesh(mesh):
        parallel.check_batch("rl.prompts", 8)
        with pytest.raises(ValueError, match=r"rl.prompts: expected a multiple of the 4 .* got 6"):
            parallel.check_batch("rl.prompts", 6)
