"""Loggers beside `metrics.jsonl`: they get its numbers, and never cost the run anything."""

import struct
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from maxpo import runs
from maxpo._extras import MissingExtraError

CONFIG = {"learning_rate": 0.1}


class FakeRun:
    """A run of wandb or trackio that keeps what it gets."""

    def __init__(self, fail_at=None, **arguments):
        self.arguments, self.fail_at = arguments, fail_at
        self.lines, self.finished = [], 0

    def log(self, data, step=None):
        if step == self.fail_at:
            raise ConnectionError("no network")
        self.lines.append((step, data))

    def finish(self):
        self.finished += 1


def fake(monkeypatch, name, **options):
    """Puts a module in the place of a package; returns the runs that it opens."""
    opened = []
    module = types.ModuleType(name)

    def init(**arguments):
        opened.append(FakeRun(**options, **arguments))
        return opened[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, name, module)
    return opened


def train(folder, loggers, stop_at=4):
    """Four steps, saved every second; a run that is stopped is as one that was killed."""
    with runs.Run(CONFIG, folder, loggers=loggers) as run:
        state, start = run.restore({"w": jnp.zeros(2)})
        for step in range(start + 1, 5):
            if step > stop_at:
                return
            run.log(step, {"loss": np.float32(1 / step), "phase": "a", "bad": float("nan")})
            if step % 2 == 0:
                run.save(step, state)
        run.finish({"loss": 0.25})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_the_numbers_of_each_line(name, tmp_path, monkeypatch):
    opened = fake(monkeypatch, name)
    train(tmp_path / "run", (name,))
    (run,) = opened
    assert run.lines == [(1, {"loss": 1.0}), (2, {"loss": 0.5})] + [
        (step, {"loss": float(np.float32(1 / step))}) for step in (3, 4)
    ]
    assert run.finished == 1
    assert run.arguments["config"] == CONFIG
    assert run.arguments["project"] == "maxpo"
    assert run.arguments["resume"] == "allow"
    assert run.arguments["name"].startswith("run")


@pytest.mark.parametrize(("name", "known_by"), [("wandb", "id"), ("trackio", "name")])
def test_a_resumed_run_is_the_same_run_there(name, known_by, tmp_path, monkeypatch):
    opened = fake(monkeypatch, name)
    train(tmp_path / "run", (name,), stop_at=3)
    train(tmp_path / "run", (name,))
    train(tmp_path / "other" / "run", (name,))
    first, second, other = opened
    assert [step for step, _ in second.lines] == [3, 4]
    assert first.arguments[known_by] == second.arguments[known_by]
    assert first.arguments[known_by] != other.arguments[known_by]


def test_the_project_of_wandb_may_come_from_its_variable(tmp_path, monkeypatch):
    opened = fake(monkeypatch, "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    train(tmp_path / "run", ("wandb",))
    assert opened[0].arguments["project"] == "mine"


def test_a_logger_that_fails_is_dropped_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    (broken, whole) = fake(monkeypatch, "wandb", fail_at=2), fake(monkeypatch, "trackio")
    train(tmp_path / "run", ("wandb", "trackio"))
    assert [step for step, _ in broken[0].lines] == [1]
    assert [step for step, _ in whole[0].lines] == [1, 2, 3, 4]
    printed = capsys.readouterr().err
    assert printed.count("warning: the logger wandb") == 1
    assert "ConnectionError: no network" in printed
    assert [line["step"] for line in runs.read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_logger_that_cannot_be_opened_or_closed_costs_nothing(tmp_path, monkeypatch, capsys):
    fake(monkeypatch, "wandb")
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **arguments: 1 / 0)
    opened = fake(monkeypatch, "trackio")
    monkeypatch.setattr(FakeRun, "finish", lambda self: 1 / 0)
    train(tmp_path / "run", ("wandb", "trackio"))
    assert len(opened[0].lines) == 4
    printed = capsys.readouterr().err
    assert printed.count("the logger wandb") == printed.count("the logger trackio") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_bad_loggers_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected some of tensorboard, wandb, trackio; got 'tb'"):
        runs.Run(CONFIG, tmp_path / "run", loggers=("tb",))
    fake(monkeypatch, "wandb")
    with pytest.raises(ValueError, match="got 'wandb' twice"):
        runs.Run(CONFIG, tmp_path / "run", loggers=("wandb", "wandb"))
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'maxpo\[trackio\]'"):
        runs.Run(CONFIG, tmp_path / "run", loggers=("trackio",))
    assert not (tmp_path / "run").exists()


def test_no_logger_leaves_no_trace(tmp_path):
    train(tmp_path / "run", ())
    assert not (tmp_path / "run" / ".logger_id").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()


def events(folder: Path):
    """The events of each file, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, of_file = path.read_bytes(), []
        while content:
            # Length and its checksum, the record, and its checksum.
            (size,) = struct.unpack("<Q", content[:8])
            of_file.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
        found.append(of_file)
    return found


def test_tensorboard_goes_on_where_the_run_does(tmp_path):
    pytest.importorskip("tensorboardX")
    train(tmp_path / "run", ("tensorboard",), stop_at=3)
    train(tmp_path / "run", ("tensorboard",))
    files = events(tmp_path / "run" / "tensorboard")
    scalars = [
        [
            (event.step, value.tag, value.simple_value)
            for event in of_file
            for value in event.summary.value
        ]
        for of_file in files
    ]
    third = float(np.float32(1 / 3))
    assert scalars == [
        [(1, "loss", 1.0), (2, "loss", 0.5), (3, "loss", third)],
        [(3, "loss", third), (4, "loss", 0.25)],
    ]
    # A session that starts at a step makes TensorBoard drop what was logged from there on.
    starts = [
        [event.step for event in of_file if event.HasField("session_log")] for of_file in files
    ]
    assert starts == [[0], [3]]
