"""What the compiler says of an update on a mesh, beside the formulas."""

import numpy as np
import pytest

from experiments import lm_scaling as experiment
from maxpo.policies.transformer import TransformerConfig
from maxpo.runs import UsageError, load_config
from maxpo.studies import lm_scaling


def make_case(devices=1, *, fully_sharded=False, **shape):
    config = load_config("configs/lm_scaling.py:quick")
    config.weak.shape.update(shape)
    config.weak.update(devices=(devices,), model=(1,))
    cases = experiment.weak_cases(config)
    return cases[f"model=1{' fully sharded' * fully_sharded}, {devices} devices"]


@pytest.fixture(scope="module")
def one():
    return lm_scaling.compile_update(make_case())


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_work_of_a_device_stays_as_devices_are_added(one, fully_sharded):
    """The bar is 5%. Fully sharded a device has fewer parameters to read: less traffic."""
    case = make_case(8, fully_sharded=fully_sharded)
    eight = lm_scaling.compile_elsewhere(case)
    assert eight["flops"] == pytest.approx(one["flops"], rel=0.02)
    assert eight["bytes"] < 1.05 * one["bytes"]
    assert eight["temporaries"] < 1.05 * one["temporaries"]
    assert sum(one["collectives"].values()) == 0
    assert eight["collectives"]["all-reduce"] > 0
    assert (eight["collectives"]["all-gather"] > 0) == fully_sharded
    assert eight["arguments"] == pytest.approx(lm_scaling.state_bytes(case), rel=0.02)


def test_formulas_are_those_of_the_compiler():
    """With one layer, as the compiler counts the body of the loop over layers once.

    It also counts norms, softmax and the optimizer, which are no products, and both halves of the
    triangle of attention.
    """
    case = make_case(layers=1, hidden=256, mlp=1024)
    found = lm_scaling.compile_update(case)
    assert found["flops"] == pytest.approx(lm_scaling.update_flops(case), rel=0.1)
    assert found["arguments"] == pytest.approx(lm_scaling.state_bytes(case), rel=0.02)


def test_parameters_are_counted():
    shape = TransformerConfig(
        vocab_size=11, context_length=8, hidden=6, layers=2, heads=4, kv_heads=2, mlp=5, head_dim=2
    )
    in_layer = 6 * (4 + 2 + 2) * 2 + 4 * 2 * 6 + 3 * 6 * 5
    assert lm_scaling.parameter_count(shape) == 11 * 6 + 2 * in_layer


def test_what_is_sent():
    case = make_case(8)._replace(data=4, model=2)
    n = lm_scaling.parameter_count(TransformerConfig(**case.shape))
    sent = lm_scaling.communicated_bytes(case)
    assert sent["gradients"] == 2 * 3 / 4 * 4 * n / 2
    assert sent["parameters"] == 0
    tokens = 4 * (16 + 4 * 32)
    assert sent["activations"] == 4 * 4 * 2 * 1 / 2 * tokens * 128 * 4
    whole = lm_scaling.communicated_bytes(case._replace(fully_sharded=True))
    assert np.isclose(whole["gradients"] + whole["parameters"], 1.5 * sent["gradients"])


def test_the_experiment(tmp_path):
    config = load_config("configs/lm_scaling.py:quick")
    config.weak.update(devices=(1,), model=(1,))
    config.weak.shape.update(size="nano", layers=1)
    summary = experiment.train_and_evaluate(config, tmp_path / "run")
    assert list(summary) == ["model=1, 1 devices", "model=1 fully sharded, 1 devices"]
    assert all(row["compiled GFLOP"] > 0 for row in summary.values())
    assert experiment.train_and_evaluate(config, tmp_path / "run") == summary
    with pytest.raises(UsageError, match="got 'fast'"):
        load_config("configs/lm_scaling.py:fast")


def test_large_models_have_their_names_parameters():
    cases = experiment.large_cases(load_config("configs/lm_scaling.py"))
    counts = {
        name: lm_scaling.parameter_count(TransformerConfig(**case.shape)) / 1e9
        for name, case in cases.items()
    }
    assert counts["600M, 8 x 1"] == pytest.approx(0.6, rel=0.02)
    assert counts["8B, 64 x 1"] == pytest.approx(8.2, rel=0.02)
    assert counts["70B, 32 x 8"] == pytest.approx(70.5, rel=0.02)
