"""The run with Tunix: its real config, shrunk; what it refuses; and that it resumes as done."""

import pytest
import tunix_warnings

from experiments import tunix_lm
from maxpo.runs import load_config, read_metrics

pytestmark = tunix_warnings.IGNORED

FILE = "configs/tunix_lm.py"


def shrink(config):
    config.updates, config.prompts, config.num_generations = 3, 2, 4
    config.eval_k, config.report_updates = 2.0, 2
    config.methods = ("rloo", "maxpo:k=2")
    return config


def test_run_and_second_run(tmp_path):
    pytest.importorskip("tunix")
    config = shrink(load_config(FILE))
    summary = tunix_lm.train_and_evaluate(config, tmp_path)
    assert list(summary) == ["rloo", "maxpo k=2"]
    assert all(0 <= row["mean_reward"] <= row["max_at_k"] <= 1 for row in summary.values())
    rows = read_metrics(tmp_path)
    assert [(row["method"], row["update"]) for row in rows] == [
        (name, update) for name in ("rloo", "maxpo k=2") for update in (1, 2, 3)
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # In one process, though Tunix's registry knows the names by now.
    assert tunix_lm.train_and_evaluate(config, tmp_path) == summary


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("methods", ("maxpo:k=8",), "'maxpo:k=8' with group_size = 8: .*N - 1 = 7"),
        ("eval_k", 9.0, "eval_k: expected at most num_generations = 8, got 9.0"),
        ("odds", (0.5, 0.4), "with sum 1"),
        ("updates", 0, "updates: expected at least 1, got 0"),
    ],
)
def test_refuses(tmp_path, field, value, message):
    config = load_config(FILE)
    config[field] = value
    with pytest.raises(ValueError, match=message):
        tunix_lm.train_and_evaluate(config, tmp_path)
