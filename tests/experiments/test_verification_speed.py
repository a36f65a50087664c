"""The benchmark of verification runs, and refuses bad configs before it works."""

import numpy as np
import pytest

from experiments import verification_speed
from maxpo.runs import UsageError, load_config, read_metrics
from maxpo.studies.speed import verification_speed as study


def test_verification_speed(tmp_path):
    config = load_config("configs/verification_speed.py:quick")
    summary = verification_speed.train_and_evaluate(config, tmp_path / "run")
    assert list(summary) == ["compute", "read", "wait", "execute"]
    assert all(np.isfinite(rate) and rate > 0 for row in summary.values() for rate in row.values())
    # Sleep of 1 ms in each of two workers.
    assert summary["wait"]["pool, samples/s"] < summary["wait"]["calls, samples/s"] <= 2000
    assert len(read_metrics(tmp_path / "run")) == 4
    assert verification_speed.train_and_evaluate(config, tmp_path / "run") == summary


def test_the_program_passes_its_tests():
    ((problem, *_), (completions, *_)) = study.make_batch(
        load_config("configs/verification_speed.py")
    )
    assert study.VERIFIERS["execute"](problem, completions[0]) == 48
    assert study.VERIFIERS["execute"](problem, "def solve(numbers): return 2, 3") == 1
    assert len(set(completions)) == 32


def test_table_is_of_medians():
    timings = [study.Timing("wait", pool, calls) for pool, calls in ((1, 4), (2, 6), (9, 9))]
    assert study.table(timings) == {
        "wait": {"pool, samples/s": 2, "calls, samples/s": 6, "calls / pool": 3}
    }


def test_bad_configs_are_refused_before_any_work(tmp_path):
    for field, value, message in (
        ("workers", 0, "workers: expected at least 1, got 0"),
        ("seconds", 0.0, "seconds: expected more than 0, got 0.0"),
        ("verifiers", ("guess",), "expected some of compute, read, wait, execute; got 'guess'"),
    ):
        config = load_config("configs/verification_speed.py:quick")
        config[field] = value
        with pytest.raises(ValueError, match=message):
            verification_speed.train_and_evaluate(config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with pytest.raises(UsageError, match="got 'fast'"):
        load_config("configs/verification_speed.py:fast")
