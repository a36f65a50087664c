"""How fast a checkpoint is read and written, and what memory that takes.

Every read is made by a process of its own, so that its peak of memory is its own: all readers in
turns, from the page cache, as the file was written or read just before.

    python -m maxpo.studies.speed.checkpoint_speed JSON

does what its argument describes and prints one line of JSON.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel, runs
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.pretrained import load_pretrained, save_pretrained
from maxpo.lm.model.sharding import RULES, layout
from maxpo.lm.model.transformer import Transformer
from maxpo.studies.speed.elsewhere import answer_elsewhere

__all__ = ["READERS", "Job", "Timing", "check_config", "do", "measure", "table"]

READERS = ("load_file", "whole", "sharded")
_WRITER = "write"
_FILE = "model.safetensors"


class Job(NamedTuple):
    """What one process does.

    Attributes:
      action: One of `READERS`: safetensors' own function, `load_pretrained` on one device, and on
        a mesh, fully sharded. Or "write": makes a random model on a mesh and saves that.
      folder: The checkpoint's.
      devices: How many it has.
      shape: Fields of the `TransformerConfig`.
      dtype: What the checkpoint stores.
    """

    action: str
    folder: str
    devices: int
    shape: dict[str, Any]
    dtype: str


class Timing(NamedTuple):
    """What a job took.

    Attributes:
      action: The job's.
      dtype: The job's.
      rate: GB of the checkpoint in a second.
      cpu: The same for a second of one processor, of which all that work are counted: what a busy
        machine leaves as it is.
      peak: The most memory of the process while it was at it, all of JAX included, as a multiple of
        the arrays that it holds in the end.
      share: The largest part of these that one device holds.
    """

    action: str
    dtype: str
    rate: float
    cpu: float
    peak: float
    share: float


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number or a name makes no sense, naming it."""
    runs.check_numbers(config, at_least={"devices": 1, "repeats": 1})
    for dtype in config.dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtypes: expected float32 or bfloat16, got {dtype!r}")
    TransformerConfig(**config.shape)


def measure(config: ConfigDict) -> Iterator[Timing]:
    """Writes a checkpoint of each dtype in a temporary folder, and reads it in turns."""
    for dtype in config.dtypes:
        with tempfile.TemporaryDirectory() as folder:

            def job(action: str, folder: str = folder, dtype: str = dtype) -> Job:
                devices = config.devices if action in ("sharded", _WRITER) else 1
                return Job(action, folder, devices, config.shape.to_dict(), dtype)

            for action in (_WRITER, *READERS * config.repeats):
                yield _do_elsewhere(job(action))


def table(timings: list[Timing]) -> dict[str, dict[str, float]]:
    """Rows by action and dtype: medians of rates, their ratio to `load_file`, highest memory."""
    rows = {}
    of_row: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        of_row.setdefault((timing.action, timing.dtype), []).append(timing)
    for (action, dtype), own in of_row.items():
        rates = _medians(own)
        rows[f"{action}, {dtype}"] = {
            "GB/s": rates[0],
            "GB/CPU s": rates[1],
            "times load_file": rates[0] / _medians(of_row["load_file", dtype])[0],
            "peak / held": max(timing.peak for timing in own),
            "share of a device": max(timing.share for timing in own),
        }
    return rows


def do(job: Job) -> Timing:
    """Does a job in this process, which has as many devices as it says."""
    action = _prepare(job)
    Path("/proc/self/clear_refs").write_text("5")  # From here on the peak counts.
    began, cpu_began = time.perf_counter(), time.process_time()
    arrays = jax.tree.leaves(jax.block_until_ready(action()))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    held = sum(array.nbytes for array in arrays)
    size = (Path(job.folder) / _FILE).stat().st_size / 1e9
    return Timing(
        job.action,
        job.dtype,
        size / seconds,
        size / cpu_seconds,
        _peak_memory() / held,
        _share(arrays) / held,
    )


def _prepare(job: Job) -> Callable[[], Any]:
    """What is timed; returns the arrays that the process holds then."""
    if job.action == "load_file":
        import safetensors.numpy

        return partial(safetensors.numpy.load_file, Path(job.folder) / _FILE)
    if job.action == _WRITER:
        model = _random_model(TransformerConfig(**job.shape))

        def write() -> nnx.State:
            save_pretrained(model, job.folder, dtype=job.dtype, max_shard_bytes=10**15)
            return nnx.state(model)

        return write
    return lambda: nnx.state(load_pretrained(job.folder, fully_sharded=True))


def _medians(timings: list[Timing]) -> list[float]:
    """Of both rates."""
    return np.median([(timing.rate, timing.cpu) for timing in timings], axis=0).tolist()


def _random_model(config: TransformerConfig) -> Transformer:
    """A model of random numbers, made where they belong."""

    @jax.jit
    def params() -> nnx.State:
        state = nnx.state(Transformer(config, rngs=nnx.Rngs(0)))
        return parallel.constrain_to(state, layout(state, RULES, fully_sharded=True))

    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.block_until_ready(params()))


def _share(arrays: list[Any]) -> int:
    """The most bytes of these that one device, or the host, holds."""
    held: dict[Any, int] = {}
    for array in arrays:
        shards = array.addressable_shards if isinstance(array, jax.Array) else []
        for device, part in [(shard.device, shard.data) for shard in shards] or [(None, array)]:
            held[device] = held.get(device, 0) + part.nbytes
    return max(held.values())


def _peak_memory() -> int:
    """The most bytes of memory that this process had at any moment; Linux tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("expected VmHWM in /proc/self/status, as Linux has it; got none")


def _do_elsewhere(job: Job) -> Timing:
    """`do` in a process that sees as many devices as the job has."""
    module = "maxpo.studies.speed.checkpoint_speed"
    return Timing(**answer_elsewhere(module, job._asdict(), devices=job.devices, what=job.action))


if __name__ == "__main__":
    with parallel.use(parallel.make_mesh()):
        print(json.dumps(do(Job(**json.loads(sys.argv[1])))._asdict()))
