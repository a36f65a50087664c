"""Work in a process of its own, which sees as many devices as it needs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["answer_elsewhere"]


def answer_elsewhere(module: str, question: Mapping[str, Any], *, devices: int, what: str) -> Any:
    """The last line that `python -m MODULE JSON` prints, read as JSON.

    Args:
      module: A program whose one argument and whose answer are JSON.
      question: The argument.
      devices: How many simulated ones of the CPU it sees; other flags of XLA are as they are here.
      what: What errors say has failed.

    Raises:
      RuntimeError: If it fails, with the end of what it has printed.
    """
    # The last one counts.
    count = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(question)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
