"""Adapters on a mesh of 4 simulated devices: the same updates, and each device holds its part."""

import json

import lora_child
import pytest
import simulated_devices


@pytest.mark.slow
def test_updates_are_those_of_one_device():
    (output,) = simulated_devices.outputs(lora_child.__file__, devices=4)
    found = json.loads(output.splitlines()[-1])
    assert found["least change"] > 0.05
    # Sums of float32 in another order; Adam divides by the gradient's size and magnifies that.
    assert found["error"] < 1e-4
    # Base matrices are cut over 2 x 2 devices, their adapters over 2 and norms over none.
    assert 0.25 < found["part"] < 0.4
