"""Many devices: one mesh, arrays that are sharded over it, and processes that agree.

The mesh has two axes. Batches are spread over `data`, by prompts and never within a group, so that
an estimator needs no communication. Matrices are cut over `model` (tensor parallel) and, where they
are fully sharded, also over `data`. The compiler puts in the communication that follows from that.
Which matrix is cut how is said by its model, such as `maxpo.lm.model.sharding`.

    with parallel.use(parallel.make_mesh(model=4)):
        params = parallel.shard(params, layout(params, RULES, fully_sharded=True))
        ...

Without a mesh all functions here leave their arguments as they are. See "GSPMD: General and
Scalable Parallelization for ML Computation Graphs" (https://arxiv.org/abs/2105.04663).
"""

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = [
    "DATA",
    "MODEL",
    "batch_shards",
    "check_batch",
    "constrain",
    "constrain_batch",
    "constrain_to",
    "current_mesh",
    "data_size",
    "fetch",
    "first_text",
    "from_first_process",
    "from_slices",
    "initialize",
    "is_same_everywhere",
    "make_mesh",
    "my_share",
    "shard",
    "shard_batch",
    "spread_runs",
    "sum_over_processes",
    "use",
]

DATA, MODEL = "data", "model"

T = TypeVar("T")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins this process to the others of a run; the first thing that a program does with JAX.

    On TPU pods, SLURM and Open MPI jobs JAX finds out the first three by itself.

    Args:
      coordinator_address: HOST:PORT of the first process.
      num_processes: Number of processes.
      process_id: Number of this one.
      heartbeat_seconds: How long a process may be silent until the others end with an error.

    Raises:
      ValueError: If they are not given and cannot be found out, or only some are, or a number makes
        no sense.
      RuntimeError: If the others do not come within five minutes.
    """
    if heartbeat_seconds < 1:
        raise ValueError(f"--heartbeat_seconds: expected at least 1, got {heartbeat_seconds}")
    given = (coordinator_address, num_processes, process_id)
    if None in given and any(value is not None for value in given):
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id: expected all three or none, "
            f"got {coordinator_address}, {num_processes} and {process_id}"
        )
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
    except ValueError as error:
        raise ValueError(
            "--distributed: JAX found no cluster here; give --coordinator_address=HOST:PORT, "
            f"--num_processes and --process_id ({error})"
        ) from error


def make_mesh(data: int = 0, model: int = 1) -> Mesh:
    """A mesh of all devices of all processes.

    Args:
      data: Size of the axis over which batches are spread; 0 for what `model` leaves.
      model: Size of the axis over which matrices are cut. Its devices should be close to each
        other: they communicate in every layer.

    Raises:
      ValueError: If the sizes do not give the number of devices.
    """
    count = jax.device_count()
    if model < 1 or data < 0 or count % model or (data and data * model != count):
        raise ValueError(
            f"mesh: expected data * model to be the number of devices, {count}, or data = 0 and a "
            f"divisor of it as model; got data = {data}, model = {model}"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((count // model, model), (DATA, MODEL), axis_types=axis_types)


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Makes a mesh the one that everything here refers to; one of a single device makes none."""
    if mesh.size == 1:
        yield
        return
    with jax.set_mesh(mesh):
        yield


def shard(tree: T, specs: Any) -> T:
    """Puts arrays, which every process holds whole, where their specs say."""
    if specs is None:
        return tree
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(lambda x, spec: _put(x, NamedSharding(mesh, spec)), tree, specs)


def from_slices(
    shape: tuple[int, ...],
    spec: PartitionSpec | None,
    make: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """An array that no one need hold whole, made slice by slice.

    Args:
      shape: The array's.
      spec: Where it lies on the mesh. None: whole on the default device.
      make: A slice, with a start and a stop on each axis, to its numbers, which are left alone from
        then on. Called once for each slice that a device of this process has, one after another.
    """
    if spec is None:
        return jax.device_put(make(tuple(slice(0, size) for size in shape)))
    sharding = NamedSharding(jax.sharding.get_mesh(), spec)
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None  # It is of this process.
        bounds = tuple(at.indices(size)[:2] for at, size in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, holders in devices.items():
        part = make(tuple(slice(*pair) for pair in bounds))
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in holders])
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def shard_batch(tree: T) -> T:
    """Spreads the first axis of arrays, which every process holds whole, over `data`.

    Raises:
      ValueError: If it does not divide.
    """
    if current_mesh() is None:
        return tree
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(DATA))
    for leaf in jax.tree.leaves(tree):
        check_batch("batch", leaf.shape[0])
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def check_batch(name: str, size: int) -> None:
    """Raises ValueError if a batch of this size cannot be spread over `data`."""
    if size % data_size():
        raise ValueError(
            f"{name}: expected a multiple of the {data_size()} devices of the mesh's axis `data`, "
            f"got {size}"
        )


def constrain(tree: T, *axes: str | None) -> T:
    """Inside `jit`: the first axes of each array lie over these axes of the mesh."""
    if current_mesh() is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(*axes))


def data_size() -> int:
    """Over how many devices batches are spread."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[DATA]


def batch_shards(size: int) -> int:
    """Into how many parts `constrain_batch` cuts a first axis of this size."""
    return 1 if size % data_size() else data_size()


def constrain_batch(tree: T) -> T:
    """Inside `jit`: the first axis of each array is spread over `data`, where it divides."""
    mesh = current_mesh()
    if mesh is None:
        return tree

    def spread(x: jax.Array) -> jax.Array:
        return x if x.shape[0] % mesh.shape[DATA] else constrain(x, DATA)

    return jax.tree.map(spread, tree)


def constrain_to(tree: T, specs: Any) -> T:
    """Inside `jit`: each array stays where their specs say."""
    return tree if specs is None else jax.lax.with_sharding_constraint(tree, specs)


def fetch(tree: T) -> T:
    """The whole of each array, on the host of every process, all of which must call this."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    if all(x.is_fully_addressable or x.is_fully_replicated for x in arrays):
        return jax.device_get(jax.tree.map(_passing, tree))
    return multihost_utils.process_allgather(tree, tiled=True)


def _passing(x: Any) -> Any:
    """The same array for a moment: one keeps what is fetched of it from several devices."""
    if not isinstance(x, jax.Array) or x.is_fully_replicated:
        return x
    parts = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def sum_over_processes(tree: T) -> T:
    """Sums of what each process holds for itself, on the host."""
    if jax.process_count() == 1:
        return tree
    gathered = multihost_utils.process_allgather(tree)
    return jax.tree.map(
        lambda x, like: x.sum(axis=0).astype(np.asarray(like).dtype), gathered, tree
    )


def my_share(count: int) -> np.ndarray:
    """Which of `count` things this process takes care of."""
    return np.arange(jax.process_index(), count, jax.process_count())


def from_first_process(text: str) -> str:
    """What process 0 says, everywhere; at most 4,000 bytes of it."""
    if jax.process_count() == 1:
        return text
    return _as_text(multihost_utils.broadcast_one_to_all(_as_bytes(text)))


def first_text(text: str) -> str:
    """The first text that is not empty, by the number of the process that has it, everywhere.

    At most 4,000 bytes of it.
    """
    if jax.process_count() == 1:
        return text
    texts = map(_as_text, multihost_utils.process_allgather(_as_bytes(text)))
    return next(filter(None, texts), "")


def is_same_everywhere(text: str) -> bool:
    """Whether all processes say the same."""
    if jax.process_count() == 1:
        return True
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    return bool(np.all(sums == sums[0]))


def spread_runs(keys: jax.Array) -> jax.Array:
    """Spreads independent runs, one for each key, over as many devices as divide them.

    What is computed from the keys follows them. With one device, or with several processes that
    the runs do not divide among, they stay where they are.
    """
    count = math.gcd(len(keys), jax.device_count())
    if count == 1 or (count < jax.device_count() and jax.process_count() > 1):
        return keys
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), (DATA,), axis_types=axis_types, devices=jax.devices()[:count])
    return jax.device_put(keys, NamedSharding(mesh, PartitionSpec(DATA)))


def _as_bytes(text: str) -> np.ndarray:
    """The first 4,000 bytes of a text, in an array of one size for all."""
    padded = np.zeros(4000, np.uint8)
    content = text.encode()[: len(padded)]
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return padded


def _as_text(padded: Any) -> str:
    return np.asarray(padded).tobytes().rstrip(b"\0").decode(errors="ignore")


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """The shape of the mesh of `use`, also while tracing; None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or set(mesh.axis_names) != {DATA, MODEL} else mesh
