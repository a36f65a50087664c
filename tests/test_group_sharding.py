"""Estimators on a mesh of 8 simulated devices: the same values, and nothing is communicated."""

import json

import group_sharding_child
import pytest
import simulated_devices


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"),
    # The second size looks ranks up by bisection, the first by comparing all pairs.
    [("Auto", 64), ("Explicit", 8), ("Explicit", 64)],
)
def test_groups_sharded_over_devices(kind, size):
    (output,) = simulated_devices.outputs(group_sharding_child.__file__, kind, size, devices=8)
    rows = [json.loads(line) for line in output.splitlines()]
    results = [row for row in rows if row["name"] != "error"]
    assert len(results) == (7 if size == 8 else 71)
    for row in results:
        assert not row["collectives"], row
        assert row["spec"] == "('data',)", row
        # Another batch shape vectorizes sums in another order.
        assert row["error"] < 1e-5, row
    messages = [row["message"] for row in rows if row["name"] == "error"]
    if kind == "Explicit":
        assert "each group (the last axis) on one device" in messages[0]
        assert f"broadcasts to the shape [16, {size}]" in messages[1]
        assert "got k[0] = 0" in messages[2]
        assert "got k[0] = 0" in messages[3]
        assert "broadcasts to [16], got shape [2]" in messages[4]
