"""Tests for maxpo.runs: a run killed at any moment resumes as if nothing had happened."""

import asyncio
import contextlib
import errno
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from full_disk import full_disk
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import runs
from maxpo._extras import missing_extra
from maxpo.runs import _checkpoints, _main, _metrics, _progress, _run

CHILD = Path(__file__).with_name("runs_child.py")
CONFIG = {"learning_rate": 0.1, "policy": {"width": 64}}


def strict_json(text: str) -> Any:
    """Parses JSON as strict readers do, without Python's NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


def snapshot(folder: Path) -> dict[str, tuple[float, bytes]]:
    """Returns times and contents of everything in a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def small_state() -> dict[str, Any]:
    """A state with every kind of leaf that training has."""
    params = {"w": jax.random.normal(jax.random.key(5), (3, 4)), "b": jnp.zeros(4)}
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "keys": jax.random.split(jax.random.key(1), (2, 3)),
        "key_rbg": jax.random.key(2, impl="rbg"),
        "bfloat16": jnp.linspace(0, 1, 7, dtype=jnp.bfloat16),
        "mask": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "committed": jax.device_put(jnp.arange(3), jax.devices()[0]),
        "sharded": jax.device_put(jnp.arange(4), NamedSharding(jax.make_mesh((1,), "x"), P("x"))),
        "host": np.arange(4, dtype=np.int64) << 40,
        "host_scalar": np.float64(0.1),
        "count": 3,
        "rate": 0.1,
        "flag": True,
        "nothing": None,
    }


def assert_same_state(actual: Any, expected: Any) -> None:
    """Checks that two states are equal bit for bit, with leaves of the same kinds."""
    structures: list[Any] = [jax.tree_util.tree_structure(state) for state in (actual, expected)]
    assert structures[0] == structures[1]
    pairs = zip(jax.tree_util.tree_leaves(actual), jax.tree_util.tree_leaves(expected), strict=True)
    for a, b in pairs:
        assert type(a) is type(b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        if isinstance(b, jax.Array):
            assert a.sharding == b.sharding
            assert a.committed == b.committed
            if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Folder and files


def fails(config, folder, *works):
    """A run that ends with an error after some work, which gets the run."""
    with contextlib.suppress(ZeroDivisionError), runs.Run(config, folder) as run:
        for work in works:
            work(run)
        raise ZeroDivisionError


def test_a_run_of_which_nothing_came_leaves_its_folder_to_others(tmp_path):
    def restore(run):
        run.restore({"x": jnp.zeros(2)})

    fails({"k": 0}, tmp_path, restore, lambda run: fails({"k": 0}, run.folder / "before"))
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    fails({"k": 1}, tmp_path, restore, lambda run: run.log(1, {"loss": 0.5}))
    # This one has a line to lose.
    with pytest.raises(runs.UsageError, match="another config"):
        runs.Run({"k": 2}, tmp_path)
    assert len(runs.read_metrics(tmp_path)) == 1


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/notes.txt", "empty.txt", "own/.lock2"])
def test_what_others_have_put_into_a_folder_stays_with_its_run(tmp_path, name):
    def put(run):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).touch()

    fails({"k": 0}, tmp_path, put)
    assert (tmp_path / name).exists()
    assert (tmp_path / "config.json").exists()


def test_a_run_leaves_the_files_of_the_contract(tmp_path: Path, capsys: Any) -> None:
    with runs.Run(ConfigDict(CONFIG), tmp_path / "run") as run:
        state, start = run.restore({"w": jnp.zeros(3)})
        assert start == 0
        for step in runs.steps(start, 4, every=2):
            run.log(step, {"loss": 1 / step})
            run.save(step, {"w": state["w"] + step})
        path = run.figure("learning_curves", Figure)
        assert not path.exists()  # `finish` draws it
        run.finish({"final": 0.5}, table=[{"estimator": "maxpo", "max@4": 0.91234}])
    folder = tmp_path / "run"
    visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "learning_curves.png",
        "summary.json",
    }
    assert strict_json((folder / "config.json").read_text()) == CONFIG
    assert (folder / "metrics.jsonl").read_text() == (
        '{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.25}\n'
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    stored = strict_json((folder / "summary.json").read_text())
    assert stored == {"final": 0.5, "table": [{"estimator": "maxpo", "max@4": 0.91234}]}
    printed = capsys.readouterr().out
    assert "maxpo      0.9123" in printed
    assert str(path) in printed


def test_metrics_are_strict_json_and_come_back(tmp_path: Path) -> None:
    metrics = {
        "numpy": np.float32(0.1),
        "jax": jnp.float32(0.25),
        "bfloat16": jnp.bfloat16(0.5),
        "array": jnp.array([[1, 2], [3, 4]]),
        "floats": np.array([0.5, np.nan, -np.inf]),
        "infinity": float("inf"),
        "count": np.int64(2**40),
        "done": np.bool_(True),
        "text": "phase 1",
        "none": None,
        "nested": {"tuple": (1, float("nan"))},
    }
    with runs.Run({}, tmp_path) as run:
        run.log(3, metrics)
    line = (tmp_path / "metrics.jsonl").read_text()
    written = strict_json(line)
    assert written["floats"] == [0.5, "NaN", "-Infinity"]
    assert written["infinity"] == "Infinity"
    assert next(iter(written)) == "step"
    (read,) = runs.read_metrics(tmp_path)
    assert read["step"] == 3
    assert read["numpy"] == np.float32(0.1)
    assert read["bfloat16"] == 0.5
    assert read["array"] == [[1, 2], [3, 4]]
    np.testing.assert_array_equal(read["floats"], [0.5, np.nan, -np.inf])
    assert read["count"] == 2**40
    assert read["done"] is True
    assert read["text"] == "phase 1"
    assert read["none"] is None
    assert np.isnan(read["nested"]["tuple"][1])


@pytest.mark.parametrize("value", [object(), 1j, jnp.array(1j), {1, 2}, jax.random.key(0)])
def test_metrics_that_json_cannot_hold_are_named(tmp_path: Path, value: Any) -> None:
    with runs.Run({}, tmp_path) as run:
        run.log(1, {"loss": 1})
        with pytest.raises(TypeError, match=r"metrics\.inner\[0\]"):
            run.log(2, {"inner": [value]})
        run.log(2, {"loss": 2})
    assert [record["step"] for record in runs.read_metrics(tmp_path)] == [1, 2]


def test_read_metrics_of_a_running_or_missing_or_broken_file(tmp_path: Path) -> None:
    assert runs.read_metrics(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert runs.read_metrics(tmp_path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: expected a JSON object"):
        runs.read_metrics(tmp_path)


def test_another_config_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    with runs.Run(CONFIG, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        run.save(1, {"w": jnp.ones(3)})
    before = snapshot(tmp_path)
    other = {"learning_rate": 0.2, "policy": {"width": 64, "depth": 2}}
    with pytest.raises(runs.UsageError) as error:
        runs.Run(other, tmp_path)
    assert "learning_rate: 0.1 -> 0.2; policy.depth: absent -> 2;" in str(error.value)
    assert snapshot(tmp_path) == before


def test_tuples_references_and_order_do_not_make_another_config(tmp_path: Path) -> None:
    config = ConfigDict({"ks": (1, 2), "a": 1})
    config.b = config.get_ref("a")
    with runs.Run(config, tmp_path):
        pass
    with runs.Run({"b": 1, "a": 1, "ks": [1, 2]}, tmp_path):
        pass


@pytest.mark.parametrize("name", ["notes.txt", "config.json", ".git/config"])
def test_a_foreign_folder_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(runs.UsageError, match=str(tmp_path)):
        runs.Run(CONFIG, tmp_path)
    assert snapshot(tmp_path) == before


def test_a_workdir_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(runs.UsageError, match="workdir: expected a folder"):
        runs.Run({}, tmp_path / "file")
    with pytest.raises(runs.UsageError, match="cannot create"):
        runs.Run({}, tmp_path / "file" / "run")
    with pytest.raises(runs.UsageError, match="local or mounted"):
        runs.Run({}, "gs://bucket/run")


def test_two_runs_at_once_in_a_folder_are_refused(tmp_path: Path) -> None:
    message = f"in use by the run of process {os.getpid()}"
    with runs.Run(CONFIG, tmp_path), pytest.raises(runs.UsageError, match=message):
        runs.Run(CONFIG, tmp_path)
    with runs.Run(CONFIG, tmp_path):
        pass


def test_a_finished_run_does_no_work_and_prints_its_table_again(
    tmp_path: Path, capsys: Any
) -> None:
    with runs.Run(CONFIG, tmp_path) as run:
        assert not run.finished
        with pytest.raises(RuntimeError, match="not finished"):
            run.report()
        run.figure("curve", Figure())
        first = run.finish({"best": float("nan")}, table={"maxpo": {"max@4": 0.5, "seeds": 32}})
    table = capsys.readouterr().out
    assert "curve.png" in table
    before = snapshot(tmp_path)
    with runs.Run(CONFIG, tmp_path) as run:
        assert run.finished
        assert run.report() == run.summary == first
        assert first["best"] == "NaN"
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (run.restore, ({},)),
            (run.log, (1, {})),
            (run.save, (1, {})),
            (run.figure, ("curve", Figure())),
            (run.finish, ({},)),
        ]
        for act, arguments in calls:
            with pytest.raises(RuntimeError, match="is finished"):
                act(*arguments)
    printed = capsys.readouterr()
    assert printed.out == table
    assert "finished run" in printed.err
    after = snapshot(tmp_path)
    assert {name for name, kept in before.items() if after[name] != kept} <= {
        str(tmp_path / ".lock")
    }


def failing_figure() -> Figure:
    raise ValueError("Dashes must not be negative")


def figure_that_cannot_be_saved() -> Figure:
    figure = Figure()
    figure.text(0, 0, "$\\frac{$")  # Only found out in drawing.
    return figure


@pytest.mark.parametrize("draw", [failing_figure, figure_that_cannot_be_saved, lambda: None])
def test_a_figure_that_fails_costs_nothing_but_itself(
    tmp_path: Path, draw: Callable[[], Any], capsys: Any
) -> None:
    with runs.Run({}, tmp_path) as run:
        run.figure("broken", draw)
        run.figure("whole", Figure())
        assert run.finish({"best": 0.5}) == {"best": 0.5}
    printed = capsys.readouterr()
    assert strict_json((tmp_path / "summary.json").read_text()) == {"best": 0.5}
    assert {path.name for path in tmp_path.glob("*.png")} == {"whole.png"}
    assert "whole.png" in printed.out
    assert "Traceback" in printed.err
    assert "warning: the figure broken was not drawn" in printed.err
    with runs.Run({}, tmp_path) as run:
        assert run.report() == {"best": 0.5}
    assert "broken" not in capsys.readouterr().err
    # As the warning says.
    (tmp_path / "summary.json").unlink()
    with runs.Run({}, tmp_path) as run:
        run.figure("broken", Figure)
        run.finish({"best": 0.5})
    assert (tmp_path / "broken.png").exists()


def test_a_figure_for_which_the_disk_has_no_room_is_reported(tmp_path: Path, capsys: Any) -> None:
    with runs.Run({}, tmp_path) as run, full_disk(100):
        run.figure("curve", Figure())
        run.finish({"best": 0.5})
    assert {path.name for path in tmp_path.iterdir()} >= {"summary.json"}
    assert not list(tmp_path.glob("*curve.png*"))
    assert f"cannot write: File too large: '{tmp_path / 'curve.png'}'" in capsys.readouterr().err


def test_a_summary_without_a_table_is_printed_itself(tmp_path: Path, capsys: Any) -> None:
    with runs.Run({}, tmp_path) as run:
        with pytest.raises(ValueError, match="no 'table'"):
            run.finish({"table": 1}, table=[])
        run.finish({"max@4": 0.123456, "curve": [1, 2, 3], "time": {"compile": 2.0}})
    printed = capsys.readouterr().out
    assert "max@4         0.1235" in printed
    assert "time.compile   2.000" in printed
    assert "curve" not in printed


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_figure_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    with runs.Run({}, tmp_path) as run, pytest.raises(ValueError, match="name: expected"):
        run.figure(name, Figure())


# Checkpoints


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = small_state()
    with runs.Run({}, tmp_path) as run:
        assert run.restore(state) == (state, 0)
        run.save(7, state)
    blank = {
        **state,
        "params": {"w": jnp.zeros((3, 4)), "b": jnp.ones(4)},
        "keys": jax.random.split(jax.random.key(9), (2, 3)),
        "bfloat16": jnp.zeros(7, jnp.bfloat16),
        "committed": state["committed"] * 0,
        "sharded": state["sharded"] * 0,
        "host": np.zeros(4, np.int64),
        "host_scalar": np.float64(0),
        "count": 0,
        "flag": False,
    }
    with runs.Run({}, tmp_path) as run:
        restored, step = run.restore(blank)
    assert step == 7
    assert_same_state(restored, state)


def test_an_initial_state_is_freed_where_a_checkpoint_takes_its_place(tmp_path: Path) -> None:
    def make(value: float) -> dict[str, Any]:
        bound = jax.device_put(jnp.full(3, value, jnp.float32), jax.devices()[0])
        return {
            "w": jnp.full(2, value, jnp.float32),
            "bound": bound,
            "key": jax.random.key(0),
            "n": 1,
        }

    with runs.Run({}, tmp_path) as run:
        initial = make(0.0)
        run.restore(initial, donate=True)  # There is none yet.
        assert initial["w"].tolist() == [0, 0]
        run.save(1, make(1.0))
    with runs.Run({}, tmp_path) as run:
        initial = make(0.0)
        restored, _ = run.restore(initial, donate=True)
        assert initial["w"].is_deleted()
        assert initial["bound"].is_deleted()
        assert_same_state(restored, make(1.0))
        assert [restored[name].committed for name in ("w", "bound")] == [False, True]
        run.finish({})
    with runs.Run({}, tmp_path) as run:
        initial = make(0.0)
        restored, _ = run.last_state(initial, donate=True)
    assert initial["w"].is_deleted()
    assert_same_state(restored, make(1.0))
    shapes = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    found, step = runs.read_checkpoint(tmp_path, shapes)
    assert step == 1
    np.testing.assert_array_equal(found["w"], [1, 1])


def test_a_flax_module_comes_back(tmp_path: Path) -> None:
    def state_of(seed: int) -> Any:
        return nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(seed)))

    with runs.Run({}, tmp_path) as run:
        run.restore(state_of(0))
        run.save(1, state_of(1))
    with runs.Run({}, tmp_path) as run:
        restored, _ = run.restore(state_of(0))
    assert_same_state(restored, state_of(1))


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    with runs.Run({}, tmp_path, keep=2) as run:
        run.restore({"w": jnp.zeros(3)})
        for step in range(5):
            run.save(step, {"w": jnp.full(3, step, jnp.float32)})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "4"}
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        runs.Run({}, tmp_path, keep=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w": jnp.zeros(4), "n": 1}, r"\['w'\] was float32\[3\] and is float32\[4\] now"),
        ({"w": jnp.zeros(3, jnp.int32), "n": 1}, r"\['w'\] was float32\[3\] and is int32\[3\]"),
        ({"v": jnp.zeros(3), "n": 1}, r"\['w'\] was float32\[3\] and is absent now"),
        ({"w": jnp.zeros(3), "n": 1, "x": 2}, r"\['x'\] was absent and is int now"),
        ({"w": jnp.zeros(3), "n": jnp.int32(1)}, r"\['n'\] was int and is int32\[\] now"),
        (
            {"w": jnp.where(jnp.arange(3) > 0, 1.0, 0.0), "n": 1},
            r"is weakly typed float32\[3\] now",
        ),
    ],
)
def test_a_state_of_another_type_is_refused(tmp_path: Path, changed: Any, message: str) -> None:
    state = {"w": jnp.ones(3), "n": 1}
    with runs.Run({}, tmp_path) as run:
        run.restore(state)
        with pytest.raises(ValueError, match=message):
            run.save(1, changed)
        run.save(1, state)
    if "weakly" in message:
        return
    with runs.Run({}, tmp_path) as run, pytest.raises(runs.UsageError, match=message):
        run.restore(changed)


def test_a_leaf_that_is_no_array_is_named(tmp_path: Path) -> None:
    with (
        runs.Run({}, tmp_path) as run,
        pytest.raises(TypeError, match=r"state\['name'\]: expected"),
    ):
        run.restore({"name": "maxpo"})


def test_a_weakly_typed_initial_state_is_the_same_fresh_and_resumed(tmp_path: Path) -> None:
    weak = {"rate": jnp.asarray(0.1)}
    assert weak["rate"].weak_type
    for _ in range(2):
        with runs.Run({}, tmp_path) as run:
            state, start = run.restore(weak)
            assert not state["rate"].weak_type
            # Promoted by a weak type this would be bfloat16.
            assert (state["rate"] * jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
            if start == 0:
                run.save(1, state)


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip_a_byte_of_the_array(checkpoint: Path) -> None:
    largest = max(files_of(checkpoint), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def empty_all_files(checkpoint: Path) -> None:
    for path in files_of(checkpoint):
        os.truncate(path, 0)


def remove_all_files(checkpoint: Path) -> None:
    for path in files_of(checkpoint):
        path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "array byte": flip_a_byte_of_the_array,
    "record cut": lambda path: os.truncate(path / "record" / "metadata", 40),
    "record gone": lambda path: (path / "record" / "metadata").unlink(),
    "manifest empty": lambda path: os.truncate(path / "state" / "manifest.ocdbt", 0),
    "tree cut": lambda path: os.truncate(path / "state" / "_METADATA", 100),
    "all empty": empty_all_files,
    "all gone": remove_all_files,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, capsys: Any
) -> None:
    # Noise, which compression stores as it is: there a flipped byte is not noticed by orbax.
    noise = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": noise})
        for step in (1, 2):
            run.log(step, {"loss": step})
            run.save(step, {"w": noise ^ step})
        run.log(3, {"loss": 3})
    DAMAGES[damage](tmp_path / "checkpoints" / "2")
    with runs.Run({}, tmp_path) as run:
        state, step = run.restore({"w": noise})
        assert step == 1
        assert state["w"].tobytes() == (noise ^ 1).tobytes()
        assert "warning: skipped the checkpoint of step 2" in capsys.readouterr().err
        assert runs.read_metrics(tmp_path) == [{"step": 1, "loss": 1}]
        run.log(2, {"loss": 2})
        run.save(2, state)
    with runs.Run({}, tmp_path) as run:
        assert run.restore({"w": noise})[1] == 2
    assert "warning" not in capsys.readouterr().err


def test_when_no_checkpoint_can_be_used_nothing_is_lost(tmp_path: Path) -> None:
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        run.log(1, {"loss": 1})
        run.save(1, {"w": jnp.ones(3)})
    DAMAGES["manifest empty"](tmp_path / "checkpoints" / "1")
    with runs.Run({}, tmp_path) as run, pytest.raises(OSError, match="none of the 1 checkpoints"):
        run.restore({"w": jnp.zeros(3)})
    assert (tmp_path / "checkpoints" / "1").exists()
    assert len(runs.read_metrics(tmp_path)) == 1


def test_a_checkpoint_whose_metrics_are_lost_is_not_used(tmp_path: Path, capsys: Any) -> None:
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        for step in (1, 2):
            run.log(step, {"loss": step})
            run.save(step, {"w": jnp.full(3, step, jnp.float32)})
    path = tmp_path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 3)
    with runs.Run({}, tmp_path) as run:
        assert run.restore({"w": jnp.zeros(3)})[1] == 1
    assert "metrics.jsonl" in capsys.readouterr().err


def test_a_resumed_run_reads_its_metrics_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        run.log(1, {"loss": 1})
        run.save(1, {"w": jnp.ones(3)})
    opened = []
    open_path = Path.open

    def noted(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path.name)
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", noted)
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        run.log(2, {"loss": 2})
        run.save(2, {"w": jnp.ones(3)})
    assert opened.count("metrics.jsonl") == 1
    assert [row["loss"] for row in runs.read_metrics(tmp_path)] == [1, 2]


def test_the_last_state_of_a_finished_run_can_be_used(tmp_path: Path) -> None:
    state = small_state()
    with runs.Run({}, tmp_path) as run:
        with pytest.raises(RuntimeError, match="not finished: use restore"):
            run.last_state(state)
        run.restore(state)
        run.save(3, state)
        run.finish({})
    with runs.Run({}, tmp_path) as run:
        last, step = run.last_state({**state, "count": 0, "rate": 0.0})
        with pytest.raises(runs.UsageError, match=r"\['count'\] was int and is float now"):
            run.last_state({**state, "count": 0.5})
    assert step == 3
    assert_same_state(last, state)
    DAMAGES["manifest empty"](tmp_path / "checkpoints" / "3")
    with runs.Run({}, tmp_path) as run, pytest.raises(OSError, match="checkpoints/3 cannot be"):
        run.last_state(state)
    with runs.Run({}, tmp_path / "none") as run:
        run.finish({})
        with pytest.raises(OSError, match="has no checkpoint"):
            run.last_state(state)


@pytest.mark.parametrize("maker", ["asyncio", "uvloop"])
def test_a_loop_that_fails_waits_for_what_it_began(maker: str) -> None:
    """As orbax does it: one of several reads fails, the loop is closed, the others report later."""
    done = []

    async def read(seconds: float, fails: bool) -> None:
        # A thread that reports by `call_soon_threadsafe`, as those of tensorstore do.
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, seconds)
        if fails:
            raise ValueError("damaged")
        done.append(seconds)

    async def begin_more() -> None:
        # Fails when the loop is being closed, and leaves a read that it had not begun before.
        await read(0.1, False)
        await asyncio.gather(read(0, True), read(0.3, False))

    async def read_all() -> None:
        await asyncio.gather(read(0, True), read(0.2, False), begin_more())

    module = pytest.importorskip(maker)
    original = module.new_event_loop
    with _checkpoints.loops_finish_their_tasks():
        loop = module.new_event_loop()
        with pytest.raises(ValueError, match="damaged"):
            loop.run_until_complete(read_all())
        loop.close()
        loop.close()  # once more does nothing
    assert done == [0.1, 0.2, 0.3]
    assert loop.is_closed()
    assert module.new_event_loop is original


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        run.save(1, {"w": jnp.ones(3)})
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1764340000"):
        half = tmp_path / "checkpoints" / name / "state"
        half.mkdir(parents=True)
        (half / "_METADATA").write_text("{")
    with runs.Run({}, tmp_path) as run:
        assert run.restore({"w": jnp.zeros(3)})[1] == 1
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1"}


def test_what_others_put_beside_checkpoints_stays(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with runs.Run({}, tmp_path, keep=1) as run:
        run.restore({"w": jnp.zeros(3)})
        run.save(1, {"w": jnp.ones(3)})
    shutil.copytree(folder / "1", folder / "1-before-the-change")
    (folder / ".DS_Store").write_text("of a file manager")
    (folder / "notes").mkdir()
    with runs.Run({}, tmp_path, keep=1) as run:
        state, step = run.restore({"w": jnp.zeros(3)})
        assert step == 1
        run.save(2, state)
    names = {path.name for path in folder.iterdir()}
    assert names == {"2", "1-before-the-change", ".DS_Store", "notes"}
    assert runs.read_checkpoint(tmp_path, {"w": jnp.zeros(3)})[1] == 2


def test_the_order_of_restore_log_and_save_is_checked(tmp_path: Path) -> None:
    state = {"w": jnp.zeros(3)}
    with runs.Run({}, tmp_path) as run:
        with pytest.raises(RuntimeError, match="restore must be called before save"):
            run.save(1, state)
        run.restore(state)
        with pytest.raises(RuntimeError, match="restore must be called once"):
            run.restore(state)
        run.log(2, {"loss": 1})
        run.save(2, state)
        with pytest.raises(ValueError, match="log must come before save"):
            run.log(2, {"loss": 2})
        with pytest.raises(ValueError, match="after that of the last save, 2, got 2"):
            run.save(2, state)
        with pytest.raises(ValueError, match="'step' of their own"):
            run.log(3, {"step": 3})
        run.log(4, {"loss": 1})
        run.log(4, {"loss": 2})
        with pytest.raises(ValueError, match="at least that of the last line, 4, got 3"):
            run.log(3, {"loss": 3})
    with runs.Run({}, tmp_path) as run, pytest.raises(RuntimeError, match="restore before log"):
        run.log(1, {"loss": 1})


def test_a_run_without_checkpoints_begins_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with runs.Run({}, tmp_path) as run:
            run.log(1, {"loss": 1})
    assert runs.read_metrics(tmp_path) == [{"step": 1, "loss": 1}]


def test_timings_are_cut_back_and_torn_lines_dropped(tmp_path: Path) -> None:
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        for step in (1, 2, 3):
            run.log_timings(step, {"seconds": 0.1 * step})
            if step == 2:
                run.save(2, {"w": jnp.ones(3)})
        with pytest.raises(ValueError, match="'step' of their own"):
            run.log_timings(4, {"step": 4})
    assert [row["step"] for row in runs.read_timings(tmp_path)] == [1, 2, 3]
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write('{"step": 4, "sec')
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": jnp.zeros(3)})
        run.save(3, {"w": jnp.ones(3)})
        run.log_timings(3, {"seconds": 7.0})  # after a save: only what is older is kept
        run.finish({})
        with pytest.raises(RuntimeError, match="is finished"):
            run.log_timings(4, {})
    assert [(row["step"], row["seconds"]) for row in runs.read_timings(tmp_path)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 7.0),
    ]
    assert not (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "timings.jsonl").write_text('{"step": 1}\nno JSON\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"timings\.jsonl:2: expected a JSON object"):
        runs.read_timings(tmp_path)


def test_a_line_of_timings_that_no_run_wrote_ends_them(tmp_path: Path) -> None:
    for line in ("no JSON", "[1]", '{"seconds": 1}', '{"step": "x"}'):
        path = tmp_path / "timings.jsonl"
        path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 0}}\n')
        assert _metrics.lines_up_to(path, 5) == b'{"step": 0}\n'


def test_appended_lines_are_those_that_came_before_the_checkpoint(tmp_path: Path) -> None:
    state = {"w": jnp.zeros(3)}

    def lines() -> list[tuple[int, str]]:
        content = (tmp_path / "texts.jsonl").read_text().splitlines()
        return [(row["step"], row["text"]) for row in map(json.loads, content)]

    with runs.Run({}, tmp_path) as run:  # Killed without a checkpoint.
        run.append("texts", 0, {"text": "lost"})
    with runs.Run({}, tmp_path) as run:
        run.restore(state)
        for step in (1, 2):
            run.append("texts", step, {"text": f"of {step}"})
        run.save(2, state)
        run.append("texts", 2, {"text": "late"})
        run.append("texts", 3, {"text": "late"})
    assert lines() == [(1, "of 1"), (2, "of 2"), (2, "late"), (3, "late")]
    with runs.Run({}, tmp_path) as run:
        run.restore(state)
        run.save(3, state)  # Which has written none of its own.
    with runs.Run({}, tmp_path) as run:
        run.restore(state)
        run.append("texts", 4, {"text": "of 4"})
    assert lines() == [(1, "of 1"), (2, "of 2"), (4, "of 4")]
    # A machine that failed has lost lines that a checkpoint has counted.
    (tmp_path / "texts.jsonl").write_text('{"step": 1, "text": "of 1"}\n{"step": 2, "te')
    with runs.Run({}, tmp_path) as run:
        run.restore(state)
        run.append("texts", 4, {"text": "of 4"})
    assert lines() == [(1, "of 1"), (4, "of 4")]


def test_the_best_state_is_kept_beside_the_checkpoints(tmp_path: Path) -> None:
    def state(value: float) -> dict[str, Any]:
        return {"w": jnp.full(3, value, jnp.float32)}

    def best() -> tuple[float, int]:
        found, step = runs.read_checkpoint(tmp_path, state(0.0), best=True)
        return float(found["w"][0]), step

    with runs.Run({}, tmp_path, keep=1) as run:
        run.restore(state(0.0))
        with pytest.raises(runs.UsageError, match="expected a run with best parameters, got none"):
            best()
        with pytest.raises(runs.UsageError, match="expected a run with a checkpoint, got none"):
            runs.read_checkpoint(tmp_path, state(0.0))
        run.keep_best(1, state(1.0))
        run.save(2, state(2.0))
        run.keep_best(3, state(3.0))
        run.save(4, state(4.0))
        run.keep_best(5, state(5.0))
        # Of a run that is going on, whose checkpoints have nothing to do with it.
        assert best() == (5.0, 5)
    with runs.Run({}, tmp_path, keep=1) as run:
        restored, step = run.restore(state(0.0))
        assert (float(restored["w"][0]), step) == (4.0, 4)
        run.keep_best(5, state(5.0))  # It comes there again.
        assert best() == (5.0, 5)
        run.finish({})
        with pytest.raises(RuntimeError, match="is finished"):
            run.keep_best(6, state(6.0))
    found, step = runs.read_checkpoint(tmp_path, state(0.0))
    assert (float(found["w"][0]), step) == (4.0, 4)
    for best_too in (False, True):
        there = "5" if best_too else "4"
        with pytest.raises(runs.UsageError, match=f"got those of steps {there}"):
            runs.read_checkpoint(tmp_path, state(0.0), step=3, best=best_too)
    with pytest.raises(runs.UsageError, match="w"):
        runs.read_checkpoint(tmp_path, {"w": jnp.zeros(4)}, best=True)
    damage = next((tmp_path / "best" / "5").rglob("*metadata*"))
    damage.write_text("nothing")
    with pytest.raises(OSError, match="the checkpoint of step 5 is damaged"):
        runs.read_checkpoint(tmp_path, state(0.0), best=True)


@pytest.mark.parametrize(("step", "saves"), [(None, 1), (None, 99), (1, 1)])
def test_a_checkpoint_that_its_run_removes_while_it_is_read(
    tmp_path: Path, monkeypatch: Any, step: int | None, saves: int
) -> None:
    """A run with keep=1 saves so many further steps, each while the one before is read."""
    find_damage = _checkpoints.find_damage
    monkeypatch.setattr(_run, "PAUSE", 0.0)
    with runs.Run({}, tmp_path, keep=1) as run:
        run.restore({"w": np.zeros(3)})
        run.save(1, {"w": np.full(3, 1.0)})

        def save_and_find_damage(folder: Path) -> str:
            saved = int(folder.name)
            if saved <= saves:
                run.save(saved + 1, {"w": np.full(3, saved + 1.0)})
            return find_damage(folder)

        monkeypatch.setattr(_checkpoints, "find_damage", save_and_find_damage)
        if step is not None:
            with pytest.raises(
                runs.UsageError, match="a checkpoint of step 1, got those of steps 2"
            ):
                runs.read_checkpoint(tmp_path, {"w": np.zeros(3)}, step=step)
        elif saves < _run.READS:
            found, read = runs.read_checkpoint(tmp_path, {"w": np.zeros(3)})
            assert (found["w"].tolist(), read) == ([2.0, 2.0, 2.0], 2)
        else:
            with pytest.raises(OSError, match="of step 5 was removed while it was read"):
                runs.read_checkpoint(tmp_path, {"w": np.zeros(3)})


def test_a_named_checkpoint_whose_removal_takes_its_time(tmp_path: Path, monkeypatch: Any) -> None:
    def remove_the_rest(seconds: float) -> None:
        shutil.rmtree(tmp_path / "checkpoints" / "1")

    monkeypatch.setattr(_run.time, "sleep", remove_the_rest)
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": np.zeros(3)})
        for step in (1, 2):
            run.save(step, {"w": np.zeros(3)})
    remove_all_files(tmp_path / "checkpoints" / "1")
    with pytest.raises(runs.UsageError, match="of step 1, got those of steps 2"):
        runs.read_checkpoint(tmp_path, {"w": np.zeros(3)}, step=1)


# A full disk


def test_a_disk_that_fails_late_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with runs.Run({}, tmp_path) as run:
        run.restore({"w": np.zeros(3)})
        run.log(1, {"loss": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match=r"metrics\.jsonl"):
                run.save(1, {"w": np.zeros(3)})
        assert not (tmp_path / "checkpoints" / "1").exists()


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with runs.Run({}, tmp_path) as run:
        run.restore({"w": np.zeros(100_000)})
        run.log(1, {"loss": 1})
        run.save(1, {"w": np.zeros(100_000)})
        with full_disk(40), pytest.raises(OSError, match=str(tmp_path / "metrics.jsonl")):
            run.log(2, {"text": "x" * 100})
        with full_disk(10_000), pytest.raises(OSError, match=str(tmp_path / "checkpoints" / "2")):
            run.save(2, {"w": rng.normal(size=100_000)})
        with full_disk(10), pytest.raises(OSError, match=str(tmp_path / "summary.json")):
            run.finish({"final": 0.5})
        run.log(2, {"loss": 2})
    assert [record["loss"] for record in runs.read_metrics(tmp_path)] == [1, 2]
    with runs.Run({}, tmp_path) as run:
        assert not run.finished
        assert run.restore({"w": np.zeros(100_000)})[1] == 1


# Kills


class Server:
    """The child program, started once, which forks a process per job (see runs_child.py)."""

    def __init__(self, log: Path):
        self._pid: int | None = None
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(CHILD.parents[1])},
            )

    def start(self, workdir: Path, **job: Any) -> int:
        self._pid = int(self._ask(json.dumps({"workdir": str(workdir), **job})))
        return self._pid

    def kill(self) -> None:
        assert self._pid is not None
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        status = int(self._ask(""))
        self._pid = None
        return status

    def close(self) -> None:
        if self._pid is not None:  # a test has failed in between
            self.kill()
            self.wait()
        self._process.communicate()

    def _ask(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.close()


@pytest.fixture(scope="module")
def unkilled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unkilled") / "run"
    server.start(folder)
    assert server.wait() == 0
    return folder


@pytest.fixture(scope="module")
def seconds(server: Server, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long the child takes when nobody kills it."""
    began = time.monotonic()
    server.start(tmp_path_factory.mktemp("timed") / "run")
    assert server.wait() == 0
    return time.monotonic() - began


def check_after_kill(folder: Path, unkilled: Path) -> None:
    """Checks what must hold at any moment: whole files only, and nothing but true lines."""
    for name in ("config.json", "summary.json"):
        if (folder / name).exists():
            assert (folder / name).read_bytes() == (unkilled / name).read_bytes()
    lines = runs.read_metrics(folder)
    assert lines == runs.read_metrics(unkilled)[: len(lines)]


def check_finished(server: Server, folder: Path, unkilled: Path) -> None:
    """Checks that the folder holds the same run as one that was never killed."""
    server.start(folder)
    assert server.wait() == 0
    for name in ("config.json", "metrics.jsonl", "summary.json"):  # the summary hashes the state
        assert (folder / name).read_bytes() == (unkilled / name).read_bytes()
    for kept in (folder, unkilled):
        # One more may be left where a kill came between a save and the removal of an old one.
        assert {path.name for path in (kept / "checkpoints").iterdir()} - {"2"} == {"4", "6", "8"}
        assert not list(kept.glob(".*tmp"))


def test_killed_at_its_file_operations(server: Server, unkilled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kills = [
        (str(folder), 1),  # before the folder is there
        (".lock", 1),
        ("config.json", 1),
        ("config.json", 2),  # between writing and renaming
        ("metrics.jsonl", 1),
        *(("checkpoints", number) for number in (3, 25, 7, 27, 1, 14, 17)),  # a save is about 18
        ("ocdbt.process_0", 2),  # while the oldest checkpoint is removed, after what 17 left
        ("summary.json", 1),
        ("summary.json", 2),
    ]
    for part, number in kills:
        server.start(folder, file_operation=(part, number))
        assert server.wait() == -signal.SIGKILL, (part, number)
        check_after_kill(folder, unkilled)
    check_finished(server, folder, unkilled)


def test_killed_in_the_middle_of_a_line(server: Server, unkilled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in (1, 2, 4, 5):
        server.start(folder, write=number)
        assert server.wait() == -signal.SIGKILL
        check_after_kill(folder, unkilled)
    assert not (folder / "metrics.jsonl").read_bytes().endswith(b"\n")
    check_finished(server, folder, unkilled)


def test_killed_while_orbax_writes(server: Server, unkilled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def half_written() -> set[int]:
        return {path.stat().st_ino for path in folder.glob("checkpoints/*tmp*/state/*/*")}

    for _ in range(3):
        before = half_written()
        server.start(folder)
        deadline = time.monotonic() + 30
        with contextlib.suppress(FileNotFoundError):  # committed in between
            while half_written() <= before and time.monotonic() < deadline:
                pass
        server.kill()
        assert server.wait() == -signal.SIGKILL
        check_after_kill(folder, unkilled)
    check_finished(server, folder, unkilled)


def test_a_second_sigterm_ends_a_save_at_once(
    server: Server, unkilled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for number in (25, 30):  # a save is about 18: in the second one of each start
        server.start(folder, terminate_twice=("checkpoints", number))
        assert server.wait() == -signal.SIGTERM
        check_after_kill(folder, unkilled)
        assert (folder / "checkpoints" / "2").exists()
    check_finished(server, folder, unkilled)


def test_killed_at_random_times(
    server: Server, unkilled: Path, seconds: float, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    rng = random.Random(1)
    for _ in range(6):
        server.start(folder)
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        server.kill()
        assert server.wait() in (-signal.SIGKILL, 0)
        check_after_kill(folder, unkilled)
    check_finished(server, folder, unkilled)


def test_the_lock_is_held_by_another_process_until_it_is_killed(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pid = server.start(folder, config={"updates": 100_000})
    while not (folder / "config.json").exists():
        time.sleep(0.01)
    config = strict_json((folder / "config.json").read_text())
    with pytest.raises(runs.UsageError, match=f"in use by the run of process {pid}"):
        runs.Run(config, folder)
    server.kill()
    assert server.wait() == -signal.SIGKILL
    with runs.Run(config, folder):
        pass


# NaN guard, progress, tables


def test_check_finite_names_step_value_and_place() -> None:
    runs.check_finite(1, {"loss": jnp.float32(1), "n": 3, "grads": [jnp.ones(3)], "none": None})
    with pytest.raises(FloatingPointError, match=r"^loss is nan at step 12$"):
        runs.check_finite(12, {"loss": jnp.float32(float("nan"))})
    bad = np.zeros((2, 3))
    bad[1, 2] = -np.inf
    with pytest.raises(
        FloatingPointError, match=r"^grads.w\[1, 2\] is -inf at step 3; 1 of 6 values are not"
    ):
        runs.check_finite(3, {"grads": {"w": bad.astype(ml_dtypes.bfloat16)}})


def test_steps_count_updates_and_end_at_the_total() -> None:
    assert list(runs.steps(0, 3)) == [1, 2, 3]
    assert list(runs.steps(0, 10, every=4)) == [4, 8, 10]
    assert list(runs.steps(8, 8, every=4)) == []
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        runs.steps(0, 3, every=0)


def test_progress_is_plain_lines_where_there_is_no_terminal(monkeypatch: Any, capsys: Any) -> None:
    clock = iter(np.arange(0, 1000, 3.0))
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    for _ in runs.steps(20, 30, every=2):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "28/30 updates, 1.5 seconds each, 00:03 left"  # From 22 on, after 3 s.
    assert lines[-1] == "30/30 updates, 1.9 seconds each, 00:00 left"
    assert len(lines) == 2
    clock = iter(np.arange(0, 1000, 0.25))
    list(runs.progress(range(100), unit="problems"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "40/100 problems, 4.0 a second, 00:15 left"
    clock = iter(np.arange(0, 1000, 12.0))
    list(runs.steps(0, 2))
    assert capsys.readouterr().err.splitlines()[0] == "1/2 updates, 12.0 seconds so far"
    assert list(runs.progress([], unit="batches")) == []
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(runs.progress("abc", unit="batches")) == ["a", "b", "c"]
    bar = capsys.readouterr().err
    assert "3/3" in bar
    assert "batches/s" in bar


def test_progress_says_where_a_loop_that_stopped_early_was(capsys: Any) -> None:
    for step in runs.steps(0, 5):
        if step == 3:
            break
    assert "2/5 updates" in capsys.readouterr().err


@contextlib.contextmanager
def stream_that_cannot_be_written(kind: str) -> Iterator[TextIO]:
    if kind == "full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe() if kind == "pipe" else pty.openpty()
        os.close(reader)
    stream = os.fdopen(descriptor, "w")
    try:
        yield stream
    finally:
        if kind != "full disk":
            stream.flush()  # Python does this at its end, and exits with code 120 if it fails.
        _progress._silence(stream)
        stream.close()


@pytest.mark.parametrize(
    ("kind", "is_bar"),
    [("pipe", False), ("terminal", True), ("terminal", False), ("full disk", False)],
)
def test_a_run_goes_on_where_nobody_can_read_how_far_it_is(
    tmp_path: Path, monkeypatch: Any, kind: str, is_bar: bool
) -> None:
    with (
        stream_that_cannot_be_written(kind) as stream,
        stream_that_cannot_be_written(kind) as out,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", out)
        patch.setattr(_progress, "_is_terminal", lambda stream: is_bar)
        patch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
        with runs.Run({}, tmp_path) as run:
            state, _ = run.restore({"w": np.zeros(3)})
            for step in runs.steps(0, 3):
                run.save(step, state)
            run.finish({"reward": 1.0})
    assert runs.read_json(tmp_path / "summary.json") == {"reward": 1.0}


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_program_without_a_stderr_trains(monkeypatch: Any, stream: TextIO | None) -> None:
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(runs.steps(0, 3)) == [1, 2, 3]
    runs.say("to nobody")


def test_errors_other_than_of_writing_are_not_hidden(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(UnicodeEncodeError):
        runs.show("0.5 ± 0.1")


def test_format_table_aligns_and_rounds() -> None:
    rows = [
        {"name": "a", "x": 1234567.891, "n": 3, "ok": True},
        {"name": "long name", "x": 1.5e-7, "n": 12345, "y": float("nan")},
        {"name": "c", "x": 100.0, "n": None, "y": 0.0},
    ]
    assert runs.format_table(rows).splitlines() == [
        "name               x      n    ok      y",
        "a            1234568      3  True      -",
        "long name  1.500e-07  12345     -    nan",
        "c              100.0      -     -  0.000",
    ]
    assert runs.format_table([]) == ""


def test_format_table_shows_an_error_that_does_not_exist_as_a_dash(
    tmp_path: Path, capsys: Any
) -> None:
    rows: list[dict[str, Any]] = [
        {"": "one problem", "pass@1": 0.5, "pass@1_sem": float("nan")},
        {"": "as stored", "pass@1": 0.5, "pass@1_sem": "NaN"},
        {"": "none", "pass@1": 0.5, "pass@1_sem": None},
        {"": "infinite", "pass@1": "-Infinity", "pass@1_sem": "Infinity"},
        {"": "no value", "pass@1": None, "pass@1_sem": 0.1},
        {"": "integers", "pass@1": 3, "pass@1_sem": 2},
    ]
    assert runs.format_table(rows).splitlines() == [
        "             pass@1",
        "one problem  0.5000 ± -",
        "as stored    0.5000 ± -",
        "none         0.5000 ± -",
        "infinite     -inf ± inf",
        "no value     -",
        "integers     3 ± 2",
    ]
    # Through the file, and at every start after it.
    with runs.Run({}, tmp_path) as run:
        run.finish({}, table=rows)
    first = capsys.readouterr().out
    assert "one problem  0.5000 ± -" in first
    with runs.Run({}, tmp_path) as run:
        run.report()
    assert capsys.readouterr().out == first


def test_format_table_shows_two_digits_of_errors() -> None:
    pairs = [(0.094686, 0.0098), (-0.008, 0.0172), (0.14285, 4.5e-5), (812.4, 31.0), (0.5, 0.0)]
    rows = [{"x": value, "x_sem": error} for value, error in pairs]
    assert runs.format_table(rows).splitlines()[1:] == [
        "0.0947 ± 0.0098",
        "-0.008 ± 0.017",
        "0.142850 ± 0.000045",
        "812 ± 31",
        "0.5000 ± 0",
    ]


def test_format_table_takes_stored_floats_for_numbers() -> None:
    rows = [{"x": "NaN"}, {"x": 1.0}, {"x": "Infinity"}]
    assert runs.format_table(rows).splitlines() == ["    x", "  nan", "1.000", "  inf"]


# The command line

CONFIG_FILE = """
from ml_collections import ConfigDict, config_dict

VARIANTS = ("small", "big")

def get_config(variant="small"):
    if variant not in VARIANTS:
        raise ValueError(f"variant must be small or big, got {variant}")
    config = ConfigDict()
    config.learning_rate = 0.1
    config.seeds = 3
    config.estimators = ("maxpo", "grpo")
    config.thresholds = (0.5, 1.0)
    config.steps = config_dict.placeholder(int)
    config.names = ["a"]
    config.policy = ConfigDict({"width": 64 if variant == "small" else 512})
    return config
"""


class Recorder:
    """An experiment that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[ConfigDict, Path]] = []

    def __call__(self, config: ConfigDict, workdir: Path) -> None:
        self.calls.append((config, workdir))
        with runs.Run(config, workdir) as run:
            if run.finished:
                run.report()
                return
            run.finish({"seeds": config.seeds})


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: Any) -> Recorder:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/demo.py").write_text(CONFIG_FILE)
    Path("configs/plain.py").write_text("def get_config():\n    return {}\n")
    Path("configs/empty.py").write_text("")
    Path("configs/needy.py").write_text("def get_config(size):\n    return size\n")
    return Recorder()


def call(experiment: Callable[[ConfigDict, Path], Any], *flags: str) -> None:
    runs.main(experiment, default_config="configs/demo.py", argv=["demo", *flags])


def test_main_reads_config_variant_overrides_and_workdir(experiment: Recorder) -> None:
    call(
        experiment,
        "--config=configs/demo.py:big",
        "--config.learning_rate=1",
        "--config.estimators=('rloo',)",
        "--config.thresholds=1,2.5",
        "--config.seeds",
        "5",
        "--workdir=out",
    )
    ((config, workdir),) = experiment.calls
    assert workdir == Path("out")
    assert config.to_dict() == {
        "learning_rate": 1.0,
        "seeds": 5,
        "estimators": ("rloo",),
        "thresholds": (1, 2.5),
        "steps": None,
        "names": ["a"],
        "policy": {"width": 512},
    }
    with pytest.raises(AttributeError):
        config.lerning_rate = 1  # locked
    call(experiment, "--config", "configs/demo.py", "--config.policy.width=8", "--workdir", "other")
    assert experiment.calls[1][0].policy.width == 8


def test_main_makes_time_stamped_folders_that_do_not_collide(experiment: Recorder) -> None:
    for _ in range(3):
        call(experiment, "--config=configs/demo.py:big")
    call(experiment)
    names = [workdir.as_posix() for _, workdir in experiment.calls]
    assert len(set(names)) == 4
    stamp = r"-\d{8}-\d{6}(-\d)?"
    assert all(re.fullmatch(f"runs/demo-big{stamp}", n) for n in names[:3])
    assert re.fullmatch(f"runs/demo{stamp}", names[3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.lerning_rate=1"],
            "unknown config field lerning_rate (did you mean learning_rate?); known: estimators, "
            "learning_rate, names, policy.width, seeds, steps, thresholds, policy",
        ),
        (["--config.policy.with=1"], "unknown config field policy.with (did you mean policy.width"),
        (["--noconfig.fast"], "unknown config field fast;"),
        (
            ["--config.learning_rate=high"],
            "--config.learning_rate: expected a value of type float, like 0.1, got 'h",
        ),
        (["--config.seeds=2.5"], "--config.seeds: expected a value of type int, like 3, got '2.5'"),
        (["--config.seeds"], "--config.seeds"),
        (
            ["--config.estimators=(1, 2)"],
            "--config.estimators: expected a tuple of str, like ('maxpo'",
        ),
        (["--config.thresholds=a"], "--config.thresholds: expected a tuple of float"),
        (["--config.policy=3"], "--config.policy: expected one field at a time, got '3'"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (["--config="], "--config needs a file"),
        (["--config"], "--config needs a file"),
        (["--config=configs/demo.py:huge"], "variant must be small or big, got huge"),
        (["--config=configs/plain.py"], "configs/plain.py must return a ConfigDict, got dict"),
        (["--config=configs/plain.py:big"], "configs/plain.py takes no variant, got 'big'"),
        (["--config=configs/needy.py"], "takes a variant: configs/needy.py:VARIANT"),
        (["--config=configs/empty.py"], "configs/empty.py defines no get_config()"),
        (["--config=configs"], "there is no config file configs"),
        (["--wrkdir=x"], "unknown flag --wrkdir (did you mean --workdir?)"),
        (["bandit"], "expected only flags, got bandit"),
        (["--workdir=configs"], "configs is neither empty nor the folder of a run"),
        (["--workdir=configs/demo.py"], "workdir: expected a folder, got the file "),
        (["--workdir=configs/demo.py/run"], "workdir: expected a folder, got the file "),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    experiment: Recorder, flags: list[str], message: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as end:
        call(experiment, *flags)
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    experiment: Recorder, monkeypatch: Any, capsys: Any
) -> None:
    # Which are rights that the superuser has everywhere.
    monkeypatch.setattr(_main.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match="2"):
        call(experiment, "--workdir=new/run")
    assert capsys.readouterr().err == (
        f"error: workdir: expected a folder that can be written, got {Path.cwd()}\n"
    )
    assert not experiment.calls


def test_a_folder_of_another_config_exits_with_2_and_a_finished_run_with_0(
    experiment: Recorder, capsys: Any
) -> None:
    call(experiment, "--workdir=out")
    call(experiment, "--workdir=out")
    assert "finished run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        call(experiment, "--workdir=out", "--config.seeds=4")
    assert end.value.code == 2
    assert "seeds: 3 -> 4" in capsys.readouterr().err


def test_a_value_error_is_the_users_before_the_run_is_opened_only(
    experiment: Recorder, capsys: Any
) -> None:
    def bad_value(config: ConfigDict, workdir: Path) -> None:
        raise ValueError("k must be at most 7, got 8")

    def bug(config: ConfigDict, workdir: Path) -> None:
        with runs.Run(config, workdir):
            raise ValueError("a bug")

    with pytest.raises(SystemExit) as end:
        call(bad_value)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: k must be at most 7, got 8\n"
    assert not list(Path("runs").iterdir())
    with pytest.raises(ValueError, match="a bug"):
        call(bug)


def test_a_missing_extra_is_one_sentence_and_leaves_no_folder(
    experiment: Recorder, capsys: Any
) -> None:
    def needs_extra(config: ConfigDict, workdir: Path) -> None:
        try:
            import a_package_that_is_not_there  # type: ignore[import-not-found] # noqa: F401
        except ImportError as error:
            name = "a-package-that-is-not-there"
            raise missing_extra("this task", name, "lm", error) from error

    with pytest.raises(SystemExit) as end:
        call(needs_extra)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: this task needs the package a-package-that-is-not-there: pip install 'maxpo[lm]'\n"
    )
    assert not list(Path("runs").iterdir())


def test_a_package_that_is_there_and_broken_says_so() -> None:
    broken = ImportError("cannot import name 'x' from 'tokenizers'")
    message = str(missing_extra("load_tokenizer", "tokenizers", "lm", broken))
    assert message.endswith("(its import failed: cannot import name 'x' from 'tokenizers')")
    other = ModuleNotFoundError("No module named 'numpy'", name="numpy")
    assert "No module named 'numpy'" in str(missing_extra("load_tokenizer", "a", "lm", other))
    absent = ModuleNotFoundError("...", name="reasoning_gym.factory")
    assert "failed" not in str(missing_extra("reasoning", "reasoning-gym", "lm", absent))


@pytest.mark.parametrize("error", [ImportError("a bug"), KeyboardInterrupt(), RuntimeError("x")])
def test_other_failures_keep_their_traceback_and_leave_no_empty_folder(
    experiment: Recorder, error: BaseException
) -> None:
    def fail(config: ConfigDict, workdir: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        call(fail)
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("home", "flags", "kept"),
    [
        ("cache", [], True),
        ("cache", ["--nocompilation_cache"], False),
        ("configs/plain.py", [], False),  # No folder can be made there.
    ],
)
def test_programs_are_kept_for_the_next_start(
    experiment: Recorder, home: str, flags: list[str], kept: bool
) -> None:
    program = (
        "import jax\n"
        "from maxpo import runs\n"
        "def study(config, workdir):\n"
        "    jax.jit(lambda x: 2 * x)(1.0)\n"
        "    print(jax.config.jax_compilation_cache_dir)\n"
        f"runs.main(study, default_config='configs/demo.py', argv=['demo', *{flags}])\n"
    )
    path = Path(home).absolute()
    environment = os.environ | {
        "XDG_CACHE_HOME": str(path),
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # Somebody's choice.
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = path / "maxpo" / "programs"
    assert done.stdout.strip() == (str(folder) if kept else "None")
    if kept:
        assert any(folder.iterdir())


def test_help_shows_the_flags_and_the_fields(experiment: Recorder, capsys: Any) -> None:
    call(experiment, "--config=configs/demo.py:big", "--help")
    printed = capsys.readouterr().out
    assert "--workdir=DIR" in printed
    assert "its variants: small, big\n" in printed
    assert "--config.policy.width=512" in printed
    assert not experiment.calls


def test_an_unexpected_failure_keeps_its_traceback_and_exits_with_1(experiment: Recorder) -> None:
    program = (
        "from maxpo import runs\n"
        "def fail(config, workdir):\n"
        "    with runs.Run(config, workdir) as run:\n"
        "        runs.check_finite(12, {'loss': float('nan')})\n"
        "runs.main(fail, default_config='configs/demo.py')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--workdir=out"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(CHILD.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "FloatingPointError: loss is nan at step 12"


def test_the_record_of_a_checkpoint_is_its_types_and_checksums() -> None:
    # The folder's format: checkpoints of runs under way must stay readable.
    assert _checkpoints.describe_leaves(small_state()) == {
        "['bfloat16']": "bfloat16[7]",
        "['committed']": "int32[3]",
        "['count']": "int",
        "['empty']": "float32[0, 3]",
        "['flag']": "bool",
        "['host']": "int64[4]",
        "['host_scalar']": "float64[]",
        "['key_rbg']": "key<rbg>[]",
        "['keys']": "key<threefry2x32>[2, 3]",
        "['mask']": "bool[2]",
        "['opt'][0].count": "int32[]",
        "['opt'][0].mu['b']": "float32[4]",
        "['opt'][0].mu['w']": "float32[3, 4]",
        "['opt'][0].nu['b']": "float32[4]",
        "['opt'][0].nu['w']": "float32[3, 4]",
        "['params']['b']": "float32[4]",
        "['params']['w']": "float32[3, 4]",
        "['rate']": "float",
        "['sharded']": "int32[4]",
    }
