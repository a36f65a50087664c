"""The throughput benchmark runs, and says what it needs before it works."""

import sys

import numpy as np
import pytest

from experiments import maze_speed
from maxpo.runs import UsageError, load_config


@pytest.mark.slow
def test_maze_speed(tmp_path):
    pytest.importorskip("xminigrid")
    config = load_config("configs/maze_speed.py:quick")
    config.horizon = 4
    summary = maze_speed.train_and_evaluate(config, tmp_path / "run")
    assert list(summary) == [
        "maze perfect 11 x 11",
        "maze rooms 11 x 11",
        "xminigrid MiniGrid-Empty-5x5 11 x 11",
        "xminigrid MiniGrid-Empty-5x5",
    ]
    assert all(np.isfinite(rate) and rate > 0 for row in summary.values() for rate in row.values())
    assert maze_speed.train_and_evaluate(config, tmp_path / "run") == summary
    config.repeats = 0
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        maze_speed.train_and_evaluate(config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_missing_extra_is_named_before_any_work(tmp_path, monkeypatch):
    from maxpo.mazes import xminigrid

    xminigrid._make.cache_clear()
    monkeypatch.setitem(sys.modules, "xminigrid", None)
    config = load_config("configs/maze_speed.py:quick")
    with pytest.raises(ImportError, match=r"pip install 'maxpo\[maze\]'"):
        maze_speed.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="got 'fast'"):
        load_config("configs/maze_speed.py:fast")
