"""What the compiler says of an update on a mesh, beside the formulas."""

import pytest

from experiments import lm_scaling as experiment
from maxpo.lm.model.config import TransformerConfig
from maxpo.runs import UsageError, load_config
from maxpo.studies.speed import lm_scaling


def make_case(devices=1, *, fully_sharded=False, **shape):
    config = load_config("configs/lm_scaling.py:quick")
    config.weak.shape.update(shape)
    config.weak.update(devices=(devices,), model=(1,))
    cases = experiment.weak_cases(config)
    return cases[f"model=1{' fully sharded' * fully_sharded}, {devices} devices"]


@pytest.fixture(scope="module")
def one():
    return lm_scaling.compile_case(make_case())


@pytest.mark.slow
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


@pytest.mark.slow
def test_sampling_of_a_device_stays_as_devices_are_added():
    one, eight = (make_case(devices)._replace(program="sampling") for devices in (1, 8))
    alone, spread = lm_scaling.compile_case(one), lm_scaling.compile_elsewhere(eight)
    assert spread["flops"] == pytest.approx(alone["flops"], rel=0.02)
    assert spread["bytes"] < 1.05 * alone["bytes"]
    assert spread["temporaries"] < 1.05 * alone["temporaries"]


@pytest.mark.slow
def test_tokens_of_a_few_samples_are_shared_by_devices():
    config = load_config("configs/lm_scaling.py")
    config.long.update(devices=(1, 4), new_tokens=2048)
    one, four = experiment.long_cases(config).values()
    alone, spread = lm_scaling.compile_case(one), lm_scaling.compile_elsewhere(four)
    assert spread["temporaries"] < 0.3 * alone["temporaries"]
    assert spread["flops"] < 0.4 * alone["flops"]


def test_samples_that_would_be_spread_themselves_are_refused():
    config = load_config("configs/lm_scaling.py")
    config.long.devices = (1, 3)
    with pytest.raises(ValueError, match=r"long.devices: expected no divisor of the 3 .* got 3"):
        experiment.check_config(config)


def test_formulas_are_those_of_the_compiler():
    """With one layer, as the compiler counts the body of the loop over layers once.

    It also counts norms, softmax and the optimizer, which are no products, and both halves of the
    triangle of attention.
    """
    case = make_case(layers=1, hidden=256, mlp=1024)
    found = lm_scaling.compile_case(case)
    assert found["flops"] == pytest.approx(lm_scaling.flops_of_device(case), rel=0.1)
    assert found["arguments"] == pytest.approx(lm_scaling.state_bytes(case), rel=0.02)


def test_parameters_are_counted():
    shape = TransformerConfig(
        vocab_size=11, context_length=8, hidden=6, layers=2, heads=4, kv_heads=2, mlp=5, head_dim=2
    )
    in_layer = 6 * (4 + 2 + 2) * 2 + 4 * 2 * 6 + 3 * 6 * 5
    assert lm_scaling.parameter_count(shape) == 11 * 6 + 2 * in_layer


def sent_on_a_ring(size, devices, *, gathers):
    """Bytes that one device passes on, chunk by chunk: reduce-scatter, then perhaps all-gather."""
    reduced = [{device} for device in range(devices)]  # Of chunk c: whose parts are added up.
    sent = 0
    for turn in range(devices - 1):
        for device in range(devices):
            chunk = (device - turn) % devices
            reduced[chunk] |= {(device + 1) % devices}
            sent += size // devices if device == 0 else 0
    assert all(len(parts) == devices for parts in reduced)
    return sent * 2 if gathers else sent


def test_what_is_sent():
    shape = {"vocab_size": 11, "context_length": 12, "hidden": 6, "layers": 2, "heads": 4}
    shape |= {"kv_heads": 2, "mlp": 5, "head_dim": 2}
    case = make_case(8)._replace(
        shape=shape, data=4, model=2, prompts=3, prompt_length=5, group_size=2, new_tokens=7
    )
    # Embedding 11 * 6; of each layer qkv 6 * 8 * 2, the attention's output 8 * 6, three of 6 * 5.
    matrices = 66 + 2 * (96 + 48 + 90)
    assert matrices == 534
    part = 4 * matrices // 2  # float32, half of them on each device of the axis `model`.
    sent = lm_scaling.communicated_bytes(case)
    assert sent["gradients"] == sent_on_a_ring(part, 4, gathers=True) == 1602
    assert sent["parameters"] == 0
    # 3 prompts of 5 tokens and 6 samples of 7: 57 states of 6 numbers. Each of 2 layers reduces
    # them after attention and after the MLP, forward and backward: 8 times, over 2 devices.
    assert sent["activations"] == 8 * sent_on_a_ring(57 * 6 * 4, 2, gathers=True) == 10944
    # Fully sharded a device keeps a part of the gradients; parameters are gathered twice, which is
    # as many bytes each time.
    whole = lm_scaling.communicated_bytes(case._replace(fully_sharded=True))
    assert whole["gradients"] == sent_on_a_ring(part, 4, gathers=False) == 801
    assert whole["parameters"] == 2 * 801
    assert whole["activations"] == sent["activations"]
    # In bfloat16 half of the activations, but all of the gradients, which are float32.
    half = lm_scaling.communicated_bytes(case._replace(shape={**shape, "dtype": "bfloat16"}))
    assert (half["activations"], half["gradients"]) == (5472, 1602)
    alone = lm_scaling.communicated_bytes(case._replace(data=1, model=1))
    assert alone == {"gradients": 0, "parameters": 0, "activations": 0}


@pytest.mark.slow
def test_the_experiment(tmp_path):
    config = load_config("configs/lm_scaling.py:quick")
    config.weak.update(devices=(1,), model=(1,))
    config.weak.shape.update(size="nano", layers=1)
    config.lora.ranks = ()
    summary = experiment.train_and_evaluate(config, tmp_path / "run")
    update = ["model=1, 1 devices", "model=1 fully sharded, 1 devices"]
    assert list(summary) == [*update, *(f"sampling, {name}" for name in update)]
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


@pytest.mark.slow
def test_a_device_of_24_gb_trains_a_model_of_1b_by_adapters():
    case = experiment.lora_cases(load_config("configs/lm_scaling.py"))["LoRA of rank 32"]
    found = lm_scaling.compile_case(case)
    assert found["arguments"] == pytest.approx(lm_scaling.state_bytes(case), rel=0.01)
    assert found["arguments"] + found["temporaries"] < 24e9


def test_adapters_are_counted():
    shape = TransformerConfig(
        vocab_size=11, context_length=8, hidden=6, layers=2, heads=4, kv_heads=2, mlp=5, head_dim=2
    )
    # qkv: 6 to 16 numbers, the output 8 to 6, gate, up and down 6 to 5 or back.
    assert lm_scaling.adapter_count(shape, 3) == 2 * 3 * (22 + 14 + 3 * 11)
