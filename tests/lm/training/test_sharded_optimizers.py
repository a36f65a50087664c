"""Optimizers on a mesh of 8 simulated devices: the same steps, and each device holds its part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optimizers_child
import pytest

from maxpo.lm.model.config import TransformerConfig
from maxpo.studies.speed.moments import moment_bytes
from maxpo.studies.speed.work import parameter_count

SPECS = ("adamw", "lion:moments=bfloat16", "adafactor", "muon")
CHILD = Path(optimizers_child.__file__)


@pytest.fixture(scope="module")
def found():
    settings = {
        "PYTHONPATH": str(Path.cwd()),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # They come after the partitioning.
    }
    done = subprocess.run(
        [sys.executable, str(CHILD), *SPECS],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {row["optimizer"]: row for row in map(json.loads, done.stdout.splitlines())}


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
