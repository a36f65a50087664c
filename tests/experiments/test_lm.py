"""The language-model study, shrunk, from its config to its figures, interrupted and killed."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lm
from maxpo import runs
from maxpo.lm.training import stages
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.settings import make_settings
from maxpo.methods import parse_method
from maxpo.runs import UsageError, load_config, read_metrics, read_timings
from maxpo.training import init_state

pytestmark = pytest.mark.slow  # Whole studies.

FOLDERS = ["sft", "rloo-seed0", "maxpo_k2-1-seed0", "rloo-seed1", "maxpo_k2-1-seed1"]
METHODS = ("rloo", "maxpo:k=2->1,learning_rate=2e-3")


def make_data(folder):
    """Sums of two digits."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    for name, part in (("train", pairs[::2]), ("held_out", pairs[1::12])):
        lines = [json.dumps({"question": f"{a}+{b}=", "answer": str(a + b)}) for a, b in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def shrink(config, folder):
    """Keeps what takes no time: a tiny model, few steps, every feature switched on."""
    config.seeds, config.methods = 2, METHODS
    config.task.train_path = str(folder / "train.jsonl")
    config.task.held_out_path = str(folder / "held_out.jsonl")
    config.task.verifier = "lm_verifier:unreliable"
    config.model.overrides.update(hidden=16, layers=1, heads=2, kv_heads=1, mlp=16)
    config.sft.update(steps=4, batch_size=8, log_every=2, save_every=2)
    config.rl.update(steps=4, prompts=4, group_size=4, max_new_tokens=3, eval_k=2, save_every=2)
    config.rl.update(loss="clipped_ratio", epochs=2, minibatches=1, micro_batches=2)
    config.rl.update(kl_coefficient=0.01, entropy_coefficient=0.01, failures="mask")
    config.rl.update(zero_variance_groups="oversample", oversampling=2, sampling_batches=2)
    config.evaluation.update(samples=4, prompts=4, every=2)
    config.log.update(every=2, groups=2)
    config.verification.update(workers=1, time_limit=5.0)
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return shrink(load_config("configs/lm.py:jsonl"), folder)


@pytest.fixture(scope="module", autouse=True)
def programs(config):
    """Traced once for all starts of this module, where a process would for itself."""
    made = stages.Programs(make_settings(config))
    with pytest.MonkeyPatch.context() as patch:
        # A copy, as fine-tuning puts its result in the place of what it began from.
        patch.setattr(stages, "Programs", lambda settings: copy.copy(made))
        yield made


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a study that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    lm.train_and_evaluate(config, folder)
    return folder


def final_parameters(folder, programs):
    """Bytes of the last parameters of every run of a study."""
    found = {}
    for name in FOLDERS:
        stored = json.loads((folder / name / "config.json").read_text())
        part = load_config("configs/lm.py:jsonl").sft
        like = init_state(programs.params, make_optimizer(part, 1.0, rules=stages.RULES))
        with runs.Run(stored, folder / name) as run:
            state, step = run.last_state(like)
        assert step == 4
        found[name] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return found


def assert_same_study(folder, other, programs):
    for name in FOLDERS:
        for file in ("metrics.jsonl", "summary.json", "config.json", "completions.jsonl"):
            first, second = ((each / name / file).read_bytes() for each in (folder, other))
            assert first == second, (name, file)
    assert final_parameters(folder, programs) == final_parameters(other, programs)


def test_a_study_leaves_runs_figures_and_a_table(config, whole, programs, capsys):
    summary = json.loads((whole / "summary.json").read_text())
    labels = ["warm start", "rloo", "maxpo k=2->1"]
    assert list(summary["pass"]) == labels
    for curve in summary["pass"].values():
        assert curve["k"] == [1, 2, 4]
        assert np.isfinite([curve["value"], curve["error"]]).all()
        assert sorted(curve["value"]) == curve["value"]
    assert [row[""] for row in summary["table"]] == labels
    assert {"pass@1", "pass@2", "pass@4", "gain in pass@2", "k tokens/s sampling"} <= set(
        summary["table"][-1]
    )
    for name in ("best_of_k", "learning_curves"):
        assert (whole / f"{name}.png").stat().st_size > 10_000
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == sorted(FOLDERS)
    history = read_metrics(whole / "maxpo_k2-1-seed1")
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert set(history[0]) == {
        "step",
        *("mean_reward", "max_at_k", "pass_at_k", "zero_variance_groups", "sampled_groups"),
        *("failed", "failed_raised", "failed_timed_out", "failed_not_finite"),
        *("completion_length", "truncated", "prompt_padding", "loss", "entropy", "gradient_norm"),
        *("kl_to_sampling_policy", "kl_to_reference", "clip_fraction", "advantage_size"),
        *("update_padding", "predicted_variance_ratio"),
    }
    # The verifier fails on what begins with some digits, and stops nothing.
    assert sum(row["failed_raised"] for row in history) > 0
    assert sum(row["failed_not_finite"] for row in history) > 0
    timings = read_timings(whole / "rloo-seed0")
    assert [row["step"] for row in timings] == [1, 2, 3, 4]
    assert all(row["sampling"] > 0 and row["updating"] > 0 for row in timings)
    for row in timings:
        shares = [row[f"share_{phase}"] for phase in ("sampling", "verifying", "updating")]
        assert 0 < sum(shares) <= 1
    capsys.readouterr()
    assert lm.train_and_evaluate(config, whole) == summary
    printed = capsys.readouterr()
    assert "maxpo k=2->1" in printed.out
    assert "nothing left to do" in printed.err


def test_methods_and_seeds_differ_and_start_from_the_same_parameters(whole, programs):
    parameters = final_parameters(whole, programs)
    assert len({tuple(leaves) for leaves in parameters.values()}) == len(FOLDERS)
    first = [read_metrics(whole / name)[0]["mean_reward"] for name in FOLDERS[1:]]
    assert first[0] == first[1]  # The same prompts and samples for every method of a seed.
    assert first[2] == first[3]


def test_a_study_interrupted_everywhere_ends_the_same(config, whole, programs, tmp_path):
    class InterruptedRunError(Exception):
        pass

    # What is called, how often it works before, and whether the interruption comes after it.
    stops = [
        ("save", 0, True),  # in the warm start
        ("finish", 0, False),  # the warm start's evaluation is lost
        ("log", 0, False),  # in the first method
        ("save", 0, True),
        ("save", 0, True),  # the last step is saved, nothing is evaluated
        ("finish", 0, True),  # the first method is done, the second one has not begun
        ("log", 3, True),  # after a save
        ("figure", 0, True),
        ("figure", 1, True),
    ]
    for name, works, after in stops:
        original = getattr(runs.Run, name)
        left = works

        def interrupt(self, *arguments, original=original, after=after, **options):
            nonlocal left
            if left == 0 and not after:
                raise InterruptedRunError
            result = original(self, *arguments, **options)
            left -= 1
            if left < 0:
                raise InterruptedRunError
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs.Run, name, interrupt)
            with pytest.raises(InterruptedRunError):
                lm.train_and_evaluate(config, tmp_path / "parts")
    lm.train_and_evaluate(config, tmp_path / "parts")
    assert_same_study(tmp_path / "parts", whole, programs)


def test_damaged_times_cost_no_more_than_the_throughput(config, whole, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for name, old, new in (
        ("rloo-seed1", b'"updating"', b'"updat\xe9ng"'),  # One bit of it.
        ("maxpo_k2-1-seed0", b'"updating"', b'"updatkng"'),
    ):
        path = folder / name / "timings.jsonl"
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
    summary = lm.train_and_evaluate(config, folder)
    expected = json.loads((whole / "summary.json").read_text())
    assert "k tokens/s updating" in expected["table"][-1]
    for row in expected["table"]:
        for phase in ("sampling", "updating"):
            row.pop(f"k tokens/s {phase}", None)
    assert summary == expected
    lines = [line for line in capfd.readouterr().err.splitlines() if "throughput" in line]
    assert len(lines) == 2
    assert re.search(r"throughput of rloo is left out.*timings\.jsonl:1: expected", lines[0])
    assert re.search(r"throughput of maxpo k=2->1 is left out.*KeyError: 'updating'", lines[1])


def test_a_study_killed_while_it_trains_ends_the_same(config, whole, programs, tmp_path):
    (tmp_path / "config.json").write_text(config.to_json())
    program = """
import json, sys
from ml_collections import ConfigDict
from experiments import lm
fields = json.load(open(sys.argv[1]))
fields["methods"] = tuple(fields["methods"])
lm.train_and_evaluate(ConfigDict(fields), sys.argv[2])
"""
    folder = tmp_path / "killed"
    path = [str(Path.cwd()), str(Path.cwd() / "tests")]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "config.json"), str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 300
        while len(read_metrics(folder / "rloo-seed0")) < 3 and child.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (folder / "summary.json").exists()
    lm.train_and_evaluate(config, folder)
    assert_same_study(folder, whole, programs)


def test_what_is_not_finite_names_the_step_and_the_prompt(config, programs, tmp_path, monkeypatch):
    def broken(params, prompts, key):
        found = draw(params, prompts, key)()
        log_probs = found.log_probs.at[1, 2, 0].set(float("nan"))
        return lambda: found._replace(log_probs=log_probs)

    draw = programs.draw
    monkeypatch.setattr(programs, "draw", broken)
    with pytest.raises(FloatingPointError, match=r"log-probabilities of '\d\+\d='\[2, 0\].*step 1"):
        lm.train_and_evaluate(config, tmp_path)
    assert not read_metrics(tmp_path / "rloo-seed0")


@pytest.mark.parametrize("stop", ["save_every", "SIGTERM"])
@pytest.mark.parametrize(
    ("what", "message"), [("loss", "loss is nan at step 3"), ("params", r"^parameters\..* step 3$")]
)
def test_fine_tuning_that_is_not_finite_keeps_its_last_good_checkpoint(
    config, programs, tmp_path, monkeypatch, stop, what, message
):
    def learn(state, *arguments):
        updates.append(len(updates) + 1)
        state, found = original(state, *arguments)
        if updates != [1, 2, 3]:
            return state, found
        if what == "loss":
            return state, found | {"loss": jnp.float32("nan")}
        params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.inf), state.params)
        return state._replace(params=params), found

    original, updates = programs.learn, []
    monkeypatch.setattr(programs, "learn", learn)
    config = config.copy_and_resolve_references()
    # Nothing is logged between the last good save and the next one.
    config.sft.update(log_every=4, save_every=1 if stop == "save_every" else 2)
    if stop == "SIGTERM":
        monkeypatch.setattr(runs.Run, "stop_asked", lambda run: updates == [1, 2, 3])
    with pytest.raises(FloatingPointError, match=message):
        lm.train_and_evaluate(config, tmp_path)
    assert [path.name for path in (tmp_path / "sft" / "checkpoints").iterdir()] == ["2"]


def test_a_diagnostic_that_is_not_finite_is_logged_and_stops_nothing(
    config, programs, tmp_path, monkeypatch
):
    broken = {"kl_to_sampling_policy": jnp.float32("inf"), "entropy": jnp.float32("nan")}

    def update(*arguments, **options):
        state, found, advantages = original(*arguments, **options)
        return state, found | broken, advantages

    original = programs.update
    monkeypatch.setattr(programs, "update", update)
    config = config.copy_and_resolve_references()
    config.seeds, config.methods = 1, ("rloo",)
    lm.train_and_evaluate(config, tmp_path)
    rows = read_metrics(tmp_path / "rloo-seed0")
    assert len(rows) == 4
    assert all(row["kl_to_sampling_policy"] == np.inf for row in rows)
    assert all(np.isnan(row["entropy"]) for row in rows)

    broken |= {"loss": jnp.float32("inf")}
    with pytest.raises(FloatingPointError, match="loss is inf at step 1"):
        lm.train_and_evaluate(config, tmp_path / "loss")


def test_a_verifier_that_always_raises_stops_the_first_evaluation(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.task.verifier = "lm_verifier:broken"
    with pytest.raises(
        RuntimeError, match=r"evaluation of sft: the verifier raised on all 36 samples"
    ) as error:
        lm.train_and_evaluate(config, tmp_path)
    assert "the table of answers is missing" in str(error.value)
    # What it would have scored is not kept: once it is mended, the same folder goes on.
    assert not (tmp_path / "sft" / "summary.json").exists()
    assert not (tmp_path / "rloo-seed0").exists()


def test_failures_of_a_graded_task_are_no_rewards(config, tmp_path, capfd):
    config = config.copy_and_resolve_references()
    config.seeds, config.methods = 1, ("rloo",)
    config.task.update(verifier="lm_verifier:distance", binary=False, success=-0.5)
    summary = lm.train_and_evaluate(config, tmp_path)
    failed = verified = 0
    for row, folder in zip(summary["table"], ("sft", "rloo-seed0"), strict=True):
        stored = json.loads((tmp_path / folder / "summary.json").read_text())
        scores = np.asarray(stored["scores"], np.float32)
        valid = np.isfinite(scores)
        assert 0 < valid.mean() < 1
        assert row["failed"] == pytest.approx(1 - valid.mean())
        assert row["pass@1"] == pytest.approx(np.mean(scores[valid] == 0) * valid.mean())
        # The best of 4 is that of the scored samples, where there are any.
        best = [group[kept].max() for group, kept in zip(scores, valid, strict=True) if kept.any()]
        assert row["max@4"] == pytest.approx(np.mean(best))
        assert row["max@1"] <= row["max@4"] < 0
        failed += sum(stored["failures"].values())
        verified += stored["verified"]
    rows = read_metrics(tmp_path / "rloo-seed0")
    assert all(row["max_at_k"] < 0 for row in rows)
    printed = capfd.readouterr().err
    assert printed.count("a verification failed") == 1
    assert "ValueError: invalid literal for int()" in printed
    assert f"{failed} of {verified} verifications failed: {failed} raised" in printed
    # What is stored is read again.
    (tmp_path / "summary.json").unlink()
    again = lm.train_and_evaluate(config, tmp_path)
    assert again == summary


def test_another_config_and_a_bad_one_are_refused(config, whole, tmp_path):
    other = config.copy_and_resolve_references()
    other.rl.learning_rate = 0.5
    with pytest.raises(UsageError, match=r"rl.learning_rate: .* -> 0\.5"):
        lm.train_and_evaluate(other, whole)
    other.methods = ("maxpo:k=4",)
    with pytest.raises(ValueError, match="N - 1 = 3"):
        lm.train_and_evaluate(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_problems_that_were_changed_since_are_refused(config, whole, tmp_path):
    other = config.copy_and_resolve_references()
    other.task.train_path = str(tmp_path / "train.jsonl")
    shutil.copy(config.task.train_path, other.task.train_path)
    folder = shutil.copytree(whole, tmp_path / "run")
    stored = json.loads((folder / "config.json").read_text())
    stored["task"]["train_path"] = other.task.train_path
    (folder / "config.json").write_text(json.dumps(stored))
    assert lm.train_and_evaluate(other, folder)
    with Path(other.task.train_path).open("a") as file:
        file.write('\n{"question": "0+11=", "answer": "11"}')
    with pytest.raises(UsageError, match=r"digests.train: \"50 problems, .* -> \"51 problems, "):
        lm.train_and_evaluate(other, folder)


@pytest.mark.parametrize("variant", ["default", "graded", "quick"])
def test_a_variant_is_a_study_that_can_begin(variant):
    pytest.importorskip("reasoning_gym")
    config = load_config(f"configs/lm.py:{variant}")
    config.task.update(train_size=20, held_out_size=10)
    settings = make_settings(config)
    for method in settings.methods:
        assert parse_method(method.label.replace(" ", ":", 1)) == method._replace(
            learning_rate=None
        )
    problem = settings.train.problems[0]
    assert settings.task.verifier(problem, problem.answer) >= config.task.success


def test_the_gpu_variant_is_what_its_text_says():
    """The numbers are read from the text: whoever changes one has to change the other."""
    text = " ".join(Path("configs/lm.py").read_text().split())
    promise = r"gpu ([\d.]+)B parameters in (\w+), (\d+) samples of up to (\d+) tokens in a step"
    billions, dtype, samples, tokens = re.search(promise, text).groups()
    config = load_config("configs/lm.py:gpu")
    assert config.model.size == f"{billions}b"
    assert config.model.dtype == dtype
    assert config.rl.prompts * config.rl.group_size == int(samples)
    assert config.rl.max_new_tokens == int(tokens)


def test_the_gpu_variant_fits_its_own_context():
    pytest.importorskip("reasoning_gym")
    config = load_config("configs/lm.py:gpu")
    config.task.update(train_size=20, held_out_size=10)
    settings = make_settings(config)
    prompt = max(map(len, (settings.tokenizer.encode(p.prompt) for p in settings.train.problems)))
    assert prompt + config.rl.max_new_tokens <= settings.model.context_length
    # No room that is never used, and one token less is refused before any work.
    longest = settings.train.prompts.tokens.shape[1]
    assert settings.model.context_length == longest + config.rl.max_new_tokens
    config.model.context_length = settings.model.context_length - 1
    with pytest.raises(ValueError, match=r"model\.context_length: expected at least"):
        make_settings(config)
