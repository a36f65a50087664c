"""Checkpoints of a pytree through orbax, checked on the way back to be what was saved."""

import asyncio
import contextlib
import importlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maxpo import parallel
from maxpo.runs._config import UsageError
from maxpo.runs._digests import find_damage, write_digests
from maxpo.runs._files import sync_tree

Leaves = dict[str, Any]

# What orbax calls a folder until it is complete; some versions add a time. Anything else that has
# no step's name belongs to somebody else.
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?")


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be used; the one before it may be good."""


@contextlib.contextmanager
def loops_finish_their_tasks() -> Iterator[None]:
    """Makes event loops that are created in its block finish their tasks before they close.

    Orbax reads and writes all arrays at once in a loop of its own, which it closes as soon as one
    of them fails. The threads that are busy with the others would then report to a closed loop:
    "RuntimeError: Event loop is closed" on stderr, from nowhere, at some later time.
    """
    originals = [(module, module.new_event_loop) for module in _makers_of_loops()]
    for module, original in originals:
        module.new_event_loop = partial(_finishing_loop, original)
    try:
        yield
    finally:
        for module, original in originals:
            module.new_event_loop = original


def _makers_of_loops() -> list[Any]:
    """The modules whose loops orbax uses: uvloop's where a loop runs already, as in a notebook."""
    makers: list[Any] = [asyncio]
    with contextlib.suppress(ImportError):
        makers.append(importlib.import_module("uvloop"))
    return makers


def _finishing_loop(make: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    loop = make()
    close = loop.close

    def finish_and_close() -> None:
        # A task may begin others and fail without waiting for them, so those that are left are
        # asked for until there are none.
        while not loop.is_closed() and (tasks := asyncio.all_tasks(loop)):
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        close()

    loop.close = finish_and_close  # type: ignore[method-assign]
    return loop


class Checkpoints:
    """The `checkpoints/` of a run: a folder per step, of which the last `keep` are kept.

    Orbax sees a flat dict from the leaf's path to its array, so every pytree can be saved, whatever
    its nodes are; the tree itself comes from the program on restoring. Orbax commits a checkpoint
    by renaming its folder, so one that a kill interrupted has no step's name. Next to the arrays it
    holds a record of each leaf's type and checksum, and checksums of its files: orbax does not
    notice every damaged byte.
    """

    def __init__(self, folder: Path, keep: int, *, read_only: bool = False):
        self._folder = folder
        self._keep = keep
        # Another process may be saving there.
        self._read_only = read_only
        self._manager: Any = None

    @loops_finish_their_tasks()
    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are complete, in order."""
        return sorted(self._orbax().all_steps()) if self._folder.exists() else []

    @loops_finish_their_tasks()
    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Writes a checkpoint; when it returns the checkpoint is on the disk.

        Args:
          step: its number, larger than that of every other.
          state: the pytree.
          record: JSON to get back from `load`.

        Raises:
          OSError: If it cannot be written, naming it; earlier ones are still there.
        """
        import orbax.checkpoint as ocp

        arrays, checksums = {}, {}
        for name, leaf in named_leaves(state).items():
            array = _storable(leaf)
            if array.size:  # orbax saves no empty arrays; there is nothing in them to save
                arrays[name] = array
                checksums[name] = _checksum(array)
        record = {**record, "leaves": describe_leaves(state), "checksums": checksums}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
        )
        try:
            self._orbax().save(step, args=items, force=True)
            write_digests(self._folder / str(step))
            parallel.from_first_process("written")  # By all, whose names are waited for here.
            if jax.process_index() == 0:
                sync_tree(self._folder / str(step))
        except Exception as error:
            what = f"cannot write the checkpoint {self._folder / str(step)}"
            if jax.process_count() > 1 and not isinstance(error, OSError):
                what += ", perhaps because another process has ended"
            raise OSError(f"{what}: {error}") from error

    @loops_finish_their_tasks()
    def load(self, step: int, like: Any, *, part: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns the state of a checkpoint and its record.

        Args:
          step: its number.
          like: a state of the same structure; gives the leaves' kinds and devices. Arrays may be
            `jax.ShapeDtypeStruct`s.
          part: whether leaves that `like` does not have are left alone.

        Raises:
          DamagedCheckpointError: If it cannot be read or is not what was saved.
          UsageError: If it is a checkpoint of another program, naming the first leaf that differs.
        """
        import orbax.checkpoint as ocp

        if damage := find_damage(self._folder / str(step)):
            raise DamagedCheckpointError(damage)
        try:
            items = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = self._orbax().restore(step, args=items)["record"]
            saved, checksums = dict(record["leaves"]), dict(record["checksums"])
        except Exception as error:
            raise DamagedCheckpointError(_first_line(error)) from error
        leaves = named_leaves(like)
        if part:
            saved, checksums = (
                {name: found[name] for name in leaves if name in found}
                for found in (saved, checksums)
            )
        difference = first_difference(saved, describe_leaves(like))
        if difference:
            where = self._folder / str(step)
            raise UsageError(
                f"{where} was saved by another version of the program: state{difference}"
            )
        targets = {name: _target(leaves[name]) for name in checksums}
        try:
            arguments = (
                ocp.args.PyTreeRestore(
                    item=targets,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(targets),
                    partial_restore=True,
                )
                if part
                else ocp.args.StandardRestore(targets)
            )
            items = ocp.args.Composite(state=arguments)
            arrays = self._orbax().restore(step, args=items)["state"]
        except Exception as error:
            raise DamagedCheckpointError(_first_line(error)) from error
        for name, checksum in checksums.items():
            found = _checksum(arrays[name])
            # Either may be missing: a checkpoint of several processes may be read by one.
            if None not in (found, checksum) and found != checksum:
                raise DamagedCheckpointError(f"state{name} is not what was saved")
        restored = [
            _like(leaf, arrays[name]) if name in arrays else leaf for name, leaf in leaves.items()
        ]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), restored), record

    @loops_finish_their_tasks()
    def delete(self, step: int) -> None:
        self._orbax().delete(step)

    @loops_finish_their_tasks()
    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _orbax(self) -> Any:
        """The manager, made when it is needed: a run that was finished before needs none."""
        if self._manager is None:
            import orbax.checkpoint as ocp

            if jax.process_index() == 0 and self._folder.exists() and not self._read_only:
                for path in self._folder.iterdir():
                    if _UNFINISHED.fullmatch(path.name):  # A kill in the middle of a save left it.
                        shutil.rmtree(path)
            self._manager = ocp.CheckpointManager(self._folder, options=self._options())
        return self._manager

    def _options(self) -> Any:
        import orbax.checkpoint as ocp

        return ocp.CheckpointManagerOptions(
            create=not self._read_only,
            preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
            # A small state is saved in less time than handing it to a thread would save, and what
            # `save` has returned from is on the disk.
            enable_async_checkpointing=False,
            # With more threads orbax waits 0.1 s at the end of each deletion.
            num_deletion_threads=1,
            # Reads nothing but names, so a deletion that a kill interrupted does no harm.
            lightweight_initialize=True,
        )


def without_weak_types(state: Any) -> Any:
    """Returns the state with the same values, and every array's type its own.

    Restored arrays are never weakly typed; making the initial ones so too keeps the promotions, and
    with them the results, of a resumed run the same.
    """

    def strong(leaf: Any) -> Any:
        if getattr(leaf, "weak_type", False):
            return jax.lax.convert_element_type(leaf, leaf.dtype)
        return leaf

    return jax.tree_util.tree_map(strong, state)


def freed(state: Any) -> Any:
    """Frees a state's arrays; returns what tells `Checkpoints.load` what they were."""

    def shape(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or _is_key(leaf) or not leaf.size:
            return leaf
        sharding = leaf.sharding if leaf.committed else None
        leaf.delete()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, state)


def describe_leaves(state: Any) -> dict[str, str]:
    """Returns the type of each leaf of a pytree under its path.

    Raises:
      TypeError: If a leaf is neither an array nor a number, naming it.

    >>> describe_leaves({"w": np.zeros((2, 3), np.float32), "step": 7})
    {"['step']": 'int', "['w']": 'float32[2, 3]'}
    """
    return {name: _describe(name, leaf) for name, leaf in named_leaves(state).items()}


def first_difference(saved: dict[str, str], current: dict[str, str]) -> str | None:
    """Returns the first leaf whose type differs, in words, or None.

    >>> first_difference({".w": "float32[3]"}, {".w": "float32[4]"})
    '.w was float32[3] and is float32[4] now'
    """
    for name in saved | current:
        before, now = saved.get(name, "absent"), current.get(name, "absent")
        if before != now:
            return f"{name} was {before} and is {now} now"
    return None


def named_leaves(state: Any) -> Leaves:
    """Returns the leaves of a pytree, in order, under their paths."""
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def _describe(name: str, leaf: Any) -> str:
    if _is_key(leaf):
        return f"key<{jax.random.key_impl(leaf)}>{list(leaf.shape)}"
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        weak = "weakly typed " if getattr(leaf, "weak_type", False) else ""
        return f"{weak}{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, bool | int | float):
        return type(leaf).__name__
    raise TypeError(f"state{name}: expected an array or a number, got {type(leaf).__name__}")


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> Any:
    """Returns the array orbax is given: sharded arrays as they are, everything else on the host.

    An array that is bound to no device (not committed) comes back bound to none, so that a resumed
    run may use it wherever the first run could.
    """
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return array if isinstance(array, jax.Array) and array.committed else np.asarray(array)


def _target(leaf: Any) -> Any:
    """Returns what tells orbax how to restore the leaf: type, shape, and where to put it."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return np.empty(leaf.shape, leaf.dtype) if leaf.sharding is None else leaf
    array = _storable(leaf)
    if isinstance(array, jax.Array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
    return np.empty(array.shape, array.dtype)


def _like(leaf: Any, array: Any) -> Any:
    """Returns the restored array as the kind of thing that `leaf` is."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return array if isinstance(array, jax.Array) else jax.device_put(array)
    if isinstance(leaf, np.ndarray):
        return array
    return array[()] if isinstance(leaf, np.generic) else type(leaf)(array.item())


def _checksum(array: Any) -> int | None:
    """Returns the CRC-32 of the array's bytes, or None where one process does not hold them all."""
    if isinstance(array, jax.Array):
        if not array.is_fully_addressable and not array.is_fully_replicated:
            return None
        array = parallel.fetch(array)
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return zlib.crc32(content.data)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
