"""The study of faults sees what is lost, what differs and what is not named."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import chaos
from maxpo import runs
from maxpo.studies.reliability import faults, folders, programs, study


def make_run(folder: Path, *, loss: float = 0.5, speed: float = 1.0, last: int = 4) -> Path:
    with runs.Run({"rate": 0.1}, folder) as run:
        run.restore({"w": np.zeros(3)})
        for step in (2, last):
            run.log(step, {"loss": loss})
            run.save(step, {"w": np.full(3, step / 10)})
        run.finish({"loss": 0.5, "updates_per_second": speed})
    return folder


def test_results_are_the_same_but_for_times(tmp_path: Path) -> None:
    reference = make_run(tmp_path / "reference")
    assert not folders.differences(make_run(tmp_path / "slower", speed=0.1), reference)
    other = make_run(tmp_path / "other", loss=0.25)
    assert folders.differences(other, reference) == [str(other / "metrics.jsonl")]
    shorter = make_run(tmp_path / "shorter", last=3)
    assert f"{shorter}: the last step" in folders.differences(shorter, reference)
    summary = json.loads((reference / "summary.json").read_text())
    (reference / "summary.json").write_text(json.dumps({**summary, "loss": 0.4}))
    slower = tmp_path / "slower"
    assert folders.differences(slower, reference) == [str(slower / "summary.json")]


def test_one_bit_of_a_parameter_is_a_difference(tmp_path: Path) -> None:
    reference, other = make_run(tmp_path / "reference"), tmp_path / "other"
    with runs.Run({"rate": 0.1}, other) as run:
        run.restore({"w": np.zeros(3)})
        for step in (2, 4):
            run.log(step, {"loss": 0.5})
            run.save(step, {"w": np.nextafter(np.full(3, step / 10), 1.0)})
        run.finish({"loss": 0.5, "updates_per_second": 1.0})
    assert folders.differences(other, reference) == [f"{other}: ['w']"]


def test_updates_are_lost_where_a_run_goes_on_before_what_was_saved(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    saved: dict[str, int] = {}

    def start(printed: str, code: int = 0) -> dict[str, Any]:
        return faults._found(folder, saved, programs.Ending(code, printed, 1.0), "full disk")

    assert start(f"starting a run in {folder}\n")["lost"] == 0
    assert saved == {str(folder): 4}
    assert start(f"resuming {folder} after step 4\n")["lost"] == 0
    assert start(f"resuming {folder} after step 2\n")["lost"] == 2
    assert start(f"starting a run in {folder}\n")["lost"] == 4
    # What was said to be saved counts, whatever is on the disk.
    start(f"SIGTERM: saved step 5 in {folder}; start the same command again to go on\n")
    assert start(f"resuming {folder} after step 4\n")["lost"] == 1
    error = "Traceback (most recent call last):\n  File experiments\nOSError: cannot write: "
    assert not start(f"{error}File too large: '{folder}/metrics.jsonl'\n", 1)["unnamed"]
    assert start(f"resuming {folder} after step 5\n{error}File too large\n", 1)["unnamed"]


def test_a_damage_is_one_bit_or_a_cut(tmp_path: Path) -> None:
    path, rng = tmp_path / "file", np.random.default_rng(0)
    content = os.urandom(100)
    kinds = set()
    for _ in range(20):
        path.write_bytes(content)
        faults._damage(path, rng)
        damaged = path.read_bytes()
        if len(damaged) == len(content):
            changed = [a ^ b for a, b in zip(damaged, content, strict=True) if a != b]
            assert [bits.bit_count() for bits in changed] == [1]
            kinds.add("bit")
        else:
            assert content.startswith(damaged)
            kinds.add("cut")
    assert kinds == {"bit", "cut"}


def test_files_of_every_kind_are_found(tmp_path: Path) -> None:
    folder, rng = make_run(tmp_path / "run"), np.random.default_rng(0)
    checkpoint = folder / "checkpoints" / "4"
    arrays = faults._file_of(folder, "arrays", rng)
    others = {faults._file_of(folder, "metadata", rng) for _ in range(30)}
    assert arrays.is_relative_to(checkpoint / "state")
    assert arrays not in others
    assert len(others) > 4
    assert all(path.is_relative_to(checkpoint) for path in others)
    assert faults._file_of(folder, "metrics.jsonl", rng) == folder / "metrics.jsonl"


def test_the_table_counts_by_program() -> None:
    rows = [
        {"program": "bandit", "fault": "kill", "lost": 0, "unnamed": False},
        {"program": "bandit", "fault": "kill", "lost": 3, "unnamed": False, "differing": ["x"]},
        {"program": "bandit", "fault": "", "lost": 0, "unnamed": False, "differing": []},
        {"program": "lm", "fault": "damage", "unnamed": True},
    ]
    first, second = study.table(rows)
    assert first == {
        "": "bandit",
        "kill": 2,
        "damage": 0,
        "runs to the end": 2,
        "updates lost": 3,
        "differing results": 1,
        "unnamed": 0,
    }
    assert (second[""], second["damage"], second["unnamed"]) == ("lm", 1, 1)


def test_faults_are_spread_over_programs_and_jobs() -> None:
    config = runs.load_config("configs/chaos.py")
    subjects = [faults.Subject(name, Path(), Path(), 1.0) for name in config.programs]
    counts: dict[tuple[str, str], int] = {}
    for job in study._jobs(config, subjects):
        subject, fault, count = job.args  # type: ignore[attr-defined]
        assert 1 <= count <= study._AT_ONCE
        counts[subject.name, fault] = counts.get((subject.name, fault), 0) + count
    for fault in faults.FAULTS:
        of_programs = [counts[name, fault] for name in config.programs]
        assert sum(of_programs) == config[fault]
        assert max(of_programs) - min(of_programs) <= 1


def test_unknown_programs_are_named() -> None:
    config = runs.load_config("configs/chaos.py")
    config.programs = ("bandit", "chess")
    with pytest.raises(ValueError, match="programs: expected some of bandit, maze, lm; got"):
        study.check_config(config)


@pytest.mark.slow
def test_no_fault_costs_a_bandit_anything(tmp_path: Path) -> None:
    summary = chaos.train_and_evaluate(runs.load_config("configs/chaos.py:quick"), tmp_path)
    (row,) = summary["table"]
    assert (row["kill"], row["term"], row["full disk"], row["damage"]) == (4, 1, 1, 2)
    assert row["runs to the end"] >= 3
    assert (row["updates lost"], row["differing results"], row["unnamed"]) == (0, 0, 0)
    # Nothing but the run itself is left of all these programs.
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"bandit", "checkpoints", "inputs", "programs"}
