"""Programs in processes of their own, which see as many simulated devices as they need."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_SECONDS = 1200  # Processes that wait for each other must not do so forever.


def environment(devices):
    """Of a process that sees so many of them and compiles as cheaply as the tests do.

    The optimizations that are left out come after the partitioning.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
    }


def free_address():
    """Where the first of several processes can wait for the others."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def outputs(program, *arguments, devices, processes=1):
    """What each process prints; fails unless all end well.

    Several get the address of the first, how many they are and their own number as last arguments.
    """
    address = free_address()

    def run(number):
        place = [address, str(processes), str(number)] if processes > 1 else []
        return subprocess.run(
            [sys.executable, program, *map(str, arguments), *place],
            env=environment(devices),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )

    with ThreadPoolExecutor(processes) as pool:
        done = list(pool.map(run, range(processes)))
    assert not any(each.returncode for each in done), [each.stderr[-4000:] for each in done]
    return [each.stdout for each in done]
