"""Damage of what a run has written: any bit of a checkpoint or of its metrics, and which file."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maxpo import runs
from maxpo.runs import _digests
from maxpo.runs._files import TEMPORARY

STATE = {"w": np.arange(300, dtype=np.int64) % 7, "step": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with the checkpoints 1 and 2."""
    with runs.Run({"rate": 0.1}, tmp_path) as run:
        run.restore(STATE)
        for step in (1, 2):
            run.log(step, {"loss": 0.25 * step})
            run.save(step, {**STATE, "w": STATE["w"] + step})
    return tmp_path


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_damage_of_any_file_of_a_checkpoint_is_named(folder: Path) -> None:
    checkpoint = folder / "checkpoints" / "2"
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not _digests.find_damage(checkpoint)
    for path in files:
        if path.name.startswith("digests."):
            continue
        content = path.read_bytes()
        if content:
            for bit in (0, 4 * len(content), 8 * len(content) - 1):
                flip(path, bit)
                assert _digests.find_damage(checkpoint) == f"{path} is not what was written"
                path.write_bytes(content)
            os.truncate(path, len(content) // 2)
            assert str(path) in _digests.find_damage(checkpoint)
        path.unlink()
        assert _digests.find_damage(checkpoint).startswith(f"{path} cannot be read: No such file")
        path.write_bytes(content)


def test_damage_of_the_digests_themselves_is_noticed(folder: Path) -> None:
    checkpoint = folder / "checkpoints" / "2"
    path = checkpoint / "digests.0.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 13):
        flip(path, bit)
        assert _digests.find_damage(checkpoint), (bit, path.read_bytes())
        path.write_bytes(content)
    os.truncate(path, len(content) - 5)
    assert _digests.find_damage(checkpoint) == f"{path} cannot be read"


def test_the_checkpoint_before_is_used_and_the_file_named(folder: Path, capsys: Any) -> None:
    # Nothing that is restored is in it, and orbax does not look at it.
    path = folder / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    flip(path, 100)
    with runs.Run({"rate": 0.1}, folder) as run:
        state, step = run.restore(STATE)
    assert step == 1
    np.testing.assert_array_equal(state["w"], STATE["w"] + 1)
    assert (
        f"skipped the checkpoint of step 2, which is damaged: {path} is not what was written"
        in (capsys.readouterr().err)
    )


def test_a_changed_digit_of_the_metrics_is_noticed(folder: Path, capsys: Any) -> None:
    path = folder / "metrics.jsonl"
    content = path.read_text()
    path.write_text(content.replace("0.5", "0.4"))
    with runs.Run({"rate": 0.1}, folder) as run:
        assert run.restore(STATE)[1] == 1  # Whose line is whole.
    assert f"damaged: {path}, which holds" in capsys.readouterr().err
    path.write_text(content.replace("0.25", "0.24"))
    with runs.Run({"rate": 0.1}, folder) as run, pytest.raises(OSError, match=str(path)):
        run.restore(STATE)


def test_damaged_config_and_summary_say_what_to_do(folder: Path) -> None:
    (folder / "summary.json").write_text('{"loss": ')
    with pytest.raises(runs.UsageError, match=r"summary\.json .*; remove it to have it written"):
        runs.Run({"rate": 0.1}, folder)
    (folder / "summary.json").unlink()
    flip(folder / "config.json", 0)
    with pytest.raises(runs.UsageError, match=r"config\.json .*; to start over choose another"):
        runs.Run({"rate": 0.1}, folder)


def test_checkpoints_without_digests_are_read(folder: Path) -> None:
    """Those of an older version, and one before whose digests a kill came."""
    checkpoint = folder / "checkpoints" / "2"
    (checkpoint / "digests.0.json").unlink()
    path = checkpoint / "record" / "metadata"
    record = json.loads(path.read_text())
    del record["metrics_checksum"]
    path.write_text(json.dumps(record))
    with runs.Run({"rate": 0.1}, folder) as run:
        assert run.restore(STATE)[1] == 2


def test_a_process_records_what_it_has_written(tmp_path: Path, monkeypatch: Any) -> None:
    names = ["record/metadata", "state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    # What another process is writing now, and moves in the next moment.
    (tmp_path / ".digests.2.json.maxpo-tmp").write_text("{")
    for process, own in ((0, names[:2]), (1, names[2:])):
        monkeypatch.setattr(_digests.jax, "process_index", lambda number=process: number)
        _digests.write_digests(tmp_path)
        stored = json.loads((tmp_path / f"digests.{process}.json").read_text())
        assert sorted(stored) == own
    monkeypatch.undo()
    flip(tmp_path / names[2], 0)
    assert str(tmp_path / names[2]) in _digests.find_damage(tmp_path)


def test_records_that_other_processes_are_writing_are_no_files_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    (tmp_path / "array").write_text("1")
    others = tmp_path / f".digests.1.json{TEMPORARY}"
    others.write_text("{")
    _digests.write_digests(tmp_path)
    others.rename(tmp_path / "digests.1.json").write_text("{}")
    assert not _digests.find_damage(tmp_path)
