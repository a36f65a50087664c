"""Adapters on a mesh of 4 simulated devices: the same updates, and each device holds its part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lora_child
import pytest


@pytest.mark.slow
def test_updates_are_those_of_one_device():
    settings = {
        "PYTHONPATH": str(Path.cwd()),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # They come after the partitioning.
    }
    done = subprocess.run(
        [sys.executable, lora_child.__file__],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["least change"] > 0.05
    # Sums of float32 in another order; Adam divides by the gradient's size and magnifies that.
    assert found["error"] < 1e-4
    # Base matrices are cut over 2 x 2 devices, their adapters over 2 and norms over none.
    assert 0.25 < found["part"] < 0.4
