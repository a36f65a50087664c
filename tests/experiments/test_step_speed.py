"""The benchmark of whole steps: its quick variant, table and loops, and starts of a fake run."""

import importlib.util
import sys
import threading

import jax
import pytest

from experiments import step_speed
from maxpo.runs import load_config, read_metrics
from maxpo.studies.speed import startup
from maxpo.studies.speed import step_speed as study
from maxpo.studies.speed.held_loop import HeldLoop, Seconds
from maxpo.studies.speed.trainers import TRAINERS, Letters, Reward

FILE = "configs/step_speed.py"


def test_quick_variant(tmp_path, capsys):
    config = load_config(f"{FILE}:quick")
    summary = step_speed.train_and_evaluate(config, tmp_path)
    assert list(summary["seconds"]) == ["maxpo"]
    assert set(summary["ratios"]["maxpo"].values()) == {1}
    of = summary["seconds"]["maxpo"]
    assert 0 < of["sampling, wall"] < of["whole, wall"]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert "sampling" in capsys.readouterr().out
    assert step_speed.train_and_evaluate(config, tmp_path) == summary


def test_table():
    def step(wall, processor, sampling):
        return study.Step(Seconds(wall, processor), Seconds(sampling, 0.5))

    medians = study.seconds(
        {
            "maxpo": [step(2.0, 3.0, 0.5), step(1.0, 1.5, 0.25), step(9.0, 9.0, 8.0)],
            "trl": [step(6.0, 6.0, 2.0)],
            "tunix": [step(5.0, 5.5, 1.0)],
        }
    )
    assert medians["maxpo"] == {
        "whole, wall": 2.0,
        "sampling, wall": 0.5,
        "rest, wall": 1.0,
        "whole, processor": 3.0,
        "sampling, processor": 0.5,
        "rest, processor": 2.5,
    }
    starts = {"cold start": [30.0, 10.0], "warm start": [4.0, 6.0]}
    assert [tuple(row.values()) for row in study.rows(medians, starts)] == [
        ("whole, wall", 2.0, 6.0, 3.0, "trl"),
        ("whole, wall", 2.0, 5.0, 2.5, "tunix"),
        ("sampling, wall", 0.5, 2.0, 4.0, "trl"),
        ("sampling, wall", 0.5, 1.0, 2.0, "tunix"),
        ("rest, wall", 1.0, 4.0, 4.0, "trl"),
        ("rest, wall", 1.0, 4.0, 4.0, "tunix"),
        ("whole, processor", 3.0, 6.0, 2.0, "trl"),
        ("whole, processor", 3.0, 5.5, 5.5 / 3, "tunix"),
        ("sampling, processor", 0.5, 0.5, 1.0, "trl"),
        ("sampling, processor", 0.5, 0.5, 1.0, "tunix"),
        ("rest, processor", 2.5, 5.5, 2.2, "trl"),
        ("rest, processor", 2.5, 5.0, 2.0, "tunix"),
        ("cold start", 20.0, None, None, "-"),
        ("warm start", 5.0, 20.0, 4.0, "cold start"),
    ]
    alone = study.rows({"maxpo": medians["maxpo"]}, {})
    assert [row["compared with"] for row in alone] == ["-"] * 6


class TestHeldLoop:
    def test_goes_on_when_asked_only(self):
        done = []

        def train(loop):
            work = loop.sampled(done.append)
            for number in range(9):
                loop.hold()
                work(number)

        before = threading.active_count()
        with HeldLoop(train) as loop:
            assert done == []
            loop.step()
            assert done == [0]
            assert loop.sampling.wall > 0
            loop.step()
            assert done == [0, 1]
        assert done == [0, 1]
        assert threading.active_count() == before

    def test_what_fails_in_the_loop_is_the_cause(self):
        def train(loop):
            loop.hold()
            raise ZeroDivisionError("none left")

        with HeldLoop(train) as loop, pytest.raises(RuntimeError, match="ended") as caught:
            loop.step()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_an_end_is_an_error_each_time(self):
        with HeldLoop(lambda loop: loop.hold()) as loop:
            for _ in range(2):
                with pytest.raises(RuntimeError, match="ended"):
                    loop.step()


def test_letters_are_tokens():
    letters = Letters(12)
    config = load_config(f"{FILE}:quick")
    config.model.vocab_size = 12
    (text, _), tokenizer = letters.prompts(config), letters.ours()
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 12)
    tokens = tokenizer.encode(text)
    assert tokens == [ord(letter) - 0x20000 for letter in text]
    assert len(tokens) == config.prompt_length
    reward = Reward()
    # Of letters alone: neither the end nor the padding is one.
    rewards = reward([text], [tokenizer.decode([2, 3, 5, 1]), tokenizer.decode([0])])
    assert rewards == pytest.approx([2 / 3, 0])
    assert reward.lengths == [3, 0]


@pytest.mark.parametrize("name", ["trl", "tunix"])
# From Tunix's models, samplers and trainer.
@pytest.mark.filterwarnings("ignore:jax.experimental.shard_map is:DeprecationWarning")
@pytest.mark.filterwarnings(
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated and will be removed:FutureWarning"
)
@pytest.mark.filterwarnings("ignore:'sharding' is deprecated, use:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`with mesh.` context manager:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:jax.interpreters.pxla.thread_res:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'.value' access is now deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_others_do_the_same_work(name, tmp_path):
    for package in study.PACKAGES[name]:
        pytest.importorskip(package)
    config = load_config(f"{FILE}:quick")
    reward = Reward()
    with TRAINERS[name](config, Letters(config.model.vocab_size), reward, tmp_path) as loop:
        loop.step()
        assert len(reward.lengths) == config.prompts * config.group_size
        assert max(reward.lengths) == config.new_tokens
        assert loop.sampling.wall > 0
        first = list(reward.lengths)
        reward.lengths.clear()
        loop.step()
        assert len(reward.lengths) == len(first)


def test_samples_that_all_end_early_are_refused():
    reward = Reward()

    def train(loop):
        while True:
            loop.hold()
            reward.of_text(None, Letters.letter(2) * 3)

    with HeldLoop(train) as loop:
        assert study._step("maxpo", loop, reward, 3).sampling == Seconds()
        with pytest.raises(ValueError, match="maxpo: every sample ended early"):
            study._step("maxpo", loop, reward, 4)


FAKE = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1].partition("=")[2])
run = folder / "maxpo_k4-seed0"
begun = (run / "metrics.jsonl").exists()
run.mkdir(parents=True, exist_ok=True)
for step in (range(20, 40) if begun else range(1, 21)):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + chr(10))
    saved = run / "checkpoints" / str(step)
    saved.mkdir(parents=True, exist_ok=True)
    (saved / "commit_success.txt").touch()
%s
"""


def test_starts_are_timed_to_the_next_update_and_killed(tmp_path):
    command = [sys.executable, "-c", FAKE % "time.sleep(60)"]
    found = startup.start_times(command, tmp_path)
    assert list(found) == list(startup.STARTS)
    assert all(0 < taken < 30 for taken in found.values())
    # The restart has gone on in the folder of the warm start.
    steps = [row["step"] for row in read_metrics(tmp_path / "second" / "maxpo_k4-seed0")]
    assert steps[:21] == [*range(1, 21), 20]
    assert len(read_metrics(tmp_path / "first" / "maxpo_k4-seed0")) == 20


def test_a_start_that_fails_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such task')"]
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1:.*no such task"):
        startup.start_times(command, tmp_path)


def test_bad_configs_are_refused_before_any_work(tmp_path, monkeypatch, capsys):
    for fields, message in (
        ({"repeats": 0}, "repeats: expected at least 1, got 0"),
        ({"group_size": 1}, "group_size: expected at least 2, got 1"),
        ({"micro_batches.trl": 0}, "micro_batches.trl: expected at least 1, got 0"),
        ({"micro_batches.tunix": 3}, "micro_batches.tunix: .* divisor of prompts = 2, got 3"),
        ({"trl_cache": "paged"}, r"trl_cache: .*'static'\), got 'paged'"),
        ({"model.heads": 3, "model.kv_heads": 2}, "kv_heads to divide heads = 3"),
    ):
        config = load_config(f"{FILE}:quick")
        config.update_from_flattened_dict(fields)
        with pytest.raises(ValueError, match=message):
            step_speed.train_and_evaluate(config, tmp_path / "bad")
    config = load_config(f"{FILE}:quick")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        config.tunix = None
        assert study.check_config(config) == ["maxpo"]
        assert "tunix is left out: it needs tunix, transformers" in capsys.readouterr().err
        config.tunix = True
        with pytest.raises(ImportError, match=r"tunix needs .*: pip install 'maxpo\[tunix\]'"):
            study.check_config(config)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: name)
        patch.setattr(jax, "default_backend", lambda: "gpu")
        config.trl = None
        with pytest.raises(ValueError, match="trl: expected False where JAX runs on the gpu"):
            study.check_config(config)
    assert not (tmp_path / "bad").exists()


def test_tiny_run_is_a_command_of_the_trainer(tmp_path):
    command = startup.tiny_run(tmp_path)
    assert command[1:4] == ["-m", "experiments.lm", "--config=configs/lm.py:jsonl"]
    known = load_config("configs/lm.py:jsonl")
    for argument in command[4:]:
        name = argument.partition("=")[0].removeprefix("--config.")
        section = known
        for part in name.split("."):
            section = section[part]
