"""Optimizers on a mesh of 8 simulated devices: the same steps, and each device holds its part."""

import json

import optimizers_child
import pytest
import simulated_devices

from maxpo.lm.model.config import TransformerConfig
from maxpo.studies.speed.moments import moment_bytes
from maxpo.studies.speed.work import parameter_count

SPECS = ("adamw", "lion:moments=bfloat16", "adafactor", "muon")


@pytest.fixture(scope="module")
def found():
    (output,) = simulated_devices.outputs(optimizers_child.__file__, *SPECS, devices=8)
    return {row["optimizer"]: row for row in map(json.loads, output.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_steps_are_those_of_one_device(found, spec):
    assert found[spec]["least change"] > 1e-3
    # Sums of float32 in another order; of 128 terms and more, five times in a row with Muon.
    assert found[spec]["error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_a_device_holds_its_part(found, spec):
    shape = TransformerConfig(**optimizers_child.SHAPE)
    moments = moment_bytes(shape, spec)
    # Weights and gradients beside them.
    expected = (8 * parameter_count(shape) + moments.cut) / 8 + moments.whole
    assert found[spec]["arguments"] == pytest.approx(expected, rel=0.05)
