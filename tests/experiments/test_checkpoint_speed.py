"""The benchmark of checkpoints runs, and refuses bad configs before it works."""

import numpy as np
import pytest

from experiments import checkpoint_speed
from maxpo.runs import load_config
from maxpo.studies.speed import checkpoint_speed as study

pytest.importorskip("safetensors.numpy")


@pytest.mark.slow
def test_checkpoint_speed(tmp_path):
    config = load_config("configs/checkpoint_speed.py:quick")
    config.dtypes = ("bfloat16",)
    summary = checkpoint_speed.train_and_evaluate(config, tmp_path / "run")
    actions = ("write", *study.READERS)
    assert list(summary) == [f"{action}, bfloat16" for action in actions]
    assert all(np.isfinite(rate) and rate > 0 for row in summary.values() for rate in row.values())
    shares = [row["share of a device"] for row in summary.values()]
    # All but vectors are cut over the two devices of the quick variant.
    assert shares == pytest.approx([0.5, 1, 1, 0.5], abs=0.01)
    assert checkpoint_speed.train_and_evaluate(config, tmp_path / "run") == summary


def test_table_is_of_medians_and_of_the_highest_memory():
    timings = [
        study.Timing(action, "float32", rate, 2 * rate, peak, 0.5)
        for action, rate, peak in (
            *(("load_file", 1, 2.0), ("load_file", 2, 2.5), ("load_file", 9, 2.0)),
            *(("whole", 3, 1.0), ("whole", 4, 1.5), ("whole", 8, 1.25)),
        )
    ]
    assert study.table(timings)["whole, float32"] == {
        "GB/s": 4,
        "GB/CPU s": 8,
        "times load_file": 2,
        "peak / held": 1.5,
        "share of a device": 0.5,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"devices": 0}, "devices: expected at least 1, got 0"),
        ({"dtypes": ("int8",)}, "dtypes: expected float32 or bfloat16, got 'int8'"),
        ({"shape.heads": 3}, "heads"),
    ],
)
def test_bad_configs_are_refused_before_any_work(fields, message, tmp_path):
    config = load_config("configs/checkpoint_speed.py:quick")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        checkpoint_speed.train_and_evaluate(config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
