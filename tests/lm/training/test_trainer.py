"""Runs with evaluations, what the model writes, and the best parameters; killed and resumed."""

import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import fill_disk

from maxpo import estimators, runs
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.training import stages, trainer
from maxpo.lm.training.evaluation import Judge
from maxpo.lm.training.schedule import Schedule, metric_of
from maxpo.lm.training.settings import make_settings
from maxpo.runs import load_config, read_checkpoint, read_metrics

METRIC = "eval_pass_at_2"
HELD_OUT = 5


def score(problem, text):
    """A half for each of two kinds of digits; raises on what begins with a sign."""
    if text[:1] in ("=", "+"):
        raise LookupError(f"no score of {text}")
    return 0.5 * bool(set(text) & set("02468")) + 0.5 * bool(set(text) & set("13579"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs = list(itertools.product(range(10), range(2)))
    for name, part in (("train", pairs[HELD_OUT:]), ("held_out", pairs[:HELD_OUT])):
        lines = [json.dumps({"question": f"{a}+{b}=", "answer": str(a + b)}) for a, b in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    config = load_config("configs/lm.py:jsonl")
    config.methods = ("rloo", "maxpo:k=2")
    config.task.update(
        train_path=str(folder / "train.jsonl"), held_out_path=str(folder / "held_out.jsonl")
    )
    config.model.update(size="nano")
    config.model.overrides.update(hidden=8, layers=1, heads=1, kv_heads=1, mlp=8)
    config.sft.steps = 0
    config.rl.update(steps=8, prompts=2, group_size=4, max_new_tokens=3, eval_k=2, save_every=4)
    config.rl.update(learning_rate=0.02, sampling_batches=1)
    config.evaluation.update(samples=4, prompts=2, every=3)
    config.log.update(every=2, groups=HELD_OUT)
    return config


@pytest.fixture(scope="module")
def programs(config):
    """Compiled once for all runs of this module."""
    return stages.Programs(make_settings(config))


@pytest.fixture
def train(config, programs, monkeypatch):
    """Trains in a folder, with changes of the config that no program depends on."""
    monkeypatch.setattr(stages, "Programs", lambda settings: programs)

    def train(folder, *, method=0, **changes):
        own = config.copy_and_resolve_references()
        for name, value in changes.items():
            section, _, field = name.partition("__")
            own[section][field] = value
        settings = make_settings(own)
        study = stages.Stages(settings, RewardFunction(score))
        return study.post_train(settings.methods[method], 0, programs.params, folder)

    return train


@pytest.fixture
def whole(train, tmp_path):
    train(tmp_path / "whole" / "run")
    return tmp_path / "whole" / "run"


class KilledError(Exception):
    """Stands for a kill."""


def killed(monkeypatch, name, works, *, after=False):
    """Has a method of runs work so often, and then kill its run before or after its work."""
    original, left = getattr(runs.Run, name), [works]

    def method(run, *arguments, **options):
        if left[0] == 0 and not after:
            raise KilledError
        result = original(run, *arguments, **options)
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        return result

    monkeypatch.setattr(runs.Run, name, method)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def files_of(folder):
    names = ("config.json", "metrics.jsonl", "completions.jsonl", "summary.json")
    return {name: (folder / name).read_bytes() for name in names}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def best_of(folder, programs):
    params, step = read_checkpoint(folder, programs.params, best=True)
    return step, [leaf.tobytes() for leaf in leaves(params)]


def pass_at_2(lines):
    """The mean over problems of how many pairs of samples have a right one."""
    pairs = [
        [max(pair) >= 1.0 for pair in itertools.combinations([c["score"] or 0 for c in group], 2)]
        for group in ([line["completions"] for line in lines])
    ]
    return np.mean(pairs)


def test_a_run_is_evaluated_now_and_then_and_after_its_last_step(whole):
    rows = read_metrics(whole)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if METRIC in row] == [3, 6, 8]
    lines = lines_of(whole)
    judged = {
        step: [x for x in lines if (x["step"], x["split"]) == (step, "held_out")]
        for step in (3, 6, 8)
    }
    for step, of_step in judged.items():
        assert [line["prompt"] for line in of_step] == ["0+0=", "0+1=", "1+0=", "1+1=", "2+0="]
        assert rows[step - 1][METRIC] == pytest.approx(pass_at_2(of_step))
        for each in itertools.chain(*(line["completions"] for line in of_step)):
            assert each["reward"] == float(each["score"] == 1.0)
    summary = json.loads((whole / "summary.json").read_text())
    scores = [[c["score"] for c in line["completions"]] for line in judged[8]]
    assert [[None if s == "NaN" else s for s in row] for row in summary["scores"]] == scores
    assert summary["steps"] == 8
    assert len({rows[step - 1]["eval_pass_at_1"] for step in judged}) > 1
    assert sum(map(len, judged.values())) + 2 * len((1, 2, 4, 6, 8)) == len(lines)
    assert not (whole / "hf").exists()  # It has not come from a checkpoint.


def test_lines_of_training_have_the_advantages_of_the_update(whole):
    lines = [line for line in lines_of(whole) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 4, 4, 6, 6, 8, 8]
    size = {row["step"]: row["advantage_size"] for row in read_metrics(whole)}
    seen = set()
    for step in (1, 2, 4, 6, 8):
        advantages = []
        for line in (line for line in lines if line["step"] == step):
            for each in line["completions"]:
                failed = each["text"][:1] in ("=", "+")
                assert (each["failure"] is not None) == failed == (each["score"] is None)
                assert failed or each["score"] == score(None, each["text"])
                assert not failed or f"no score of {each['text']}\n" in each["failure"]
                assert each["reward"] == float(each["score"] == 1.0)
                assert each["end"] == "ended" or each["tokens"] == 3
            rewards = np.array([each["reward"] for each in line["completions"]])
            others = (rewards.sum() - rewards) / 3
            advantages.append([each["advantage"] for each in line["completions"]])
            np.testing.assert_allclose(advantages[-1], rewards - others, atol=1e-6)
            seen |= set(rewards)
        assert np.mean(np.abs(advantages)) == pytest.approx(size[step], abs=1e-6)
    assert seen == {0.0, 1.0}


# What is called, how often it works before, and whether the kill comes after its work.
STOPS = {
    "before any checkpoint": [("append", 3, True), ("log", 2, False)],
    "between a line and its metrics": [("log", 4, False), ("save", 0, False), ("log", 2, True)],
    "after a checkpoint": [("save", 0, True), ("append", 1, True), ("save", 0, True)],
    "around the best parameters": [
        *(("keep_best", 0, False), ("keep_best", 0, True), ("log", 3, True)),
    ],
    "at the end": [("save", 1, True), ("finish", 0, False), ("finish", 0, False)],
}


@pytest.mark.parametrize("every", [3, 0])
@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_a_killed_run_ends_as_if_it_had_not_been(
    train, programs, tmp_path, monkeypatch, stops, every
):
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(whole, evaluation__every=every)
    for name, works, after in stops:
        if name == "keep_best" and not every:
            continue
        with monkeypatch.context() as patch:
            killed(patch, name, works, after=after)
            with pytest.raises(KilledError):
                train(parts, evaluation__every=every)
        if name in ("append", "log"):
            with (parts / "completions.jsonl").open("a") as file:
                file.write('{"step": 1, "sp')  # A line that was being written.
    train(parts, evaluation__every=every)
    assert files_of(parts) == files_of(whole)
    held_out = [line["step"] for line in lines_of(parts) if line["split"] != "train"]
    assert held_out == np.repeat([3, 6, 8] if every else [8], HELD_OUT).tolist()
    if every:
        assert best_of(parts, programs) == best_of(whole, programs)


ADAPTIVE = "maxpo:k=adaptive,target=0.75,k_max=3"


@pytest.fixture(scope="module")
def adaptive_config(config):
    """All groups of each step are written down, and problems come two or three times."""
    own = config.copy_and_resolve_references()
    own.methods = (ADAPTIVE, "rloo")
    own.rl.update(prompts=5, save_every=3)
    own.evaluation.update(every=0, prompts=5)
    own.log.update(every=1, groups=5)
    return own


@pytest.fixture(scope="module")
def adaptive_programs(adaptive_config):
    return stages.Programs(make_settings(adaptive_config))


@pytest.fixture
def train_adaptive(adaptive_config, adaptive_programs, monkeypatch):
    """Trains one of the two methods in a folder; the states that are saved, by step."""
    monkeypatch.setattr(stages, "Programs", lambda settings: adaptive_programs)
    settings = make_settings(adaptive_config)
    saved, original = {}, runs.Run.save

    def save(run, step, state):
        saved[step] = jax.device_get(state)
        original(run, step, state)

    monkeypatch.setattr(runs.Run, "save", save)

    def train(folder, method=0):
        study = stages.Stages(settings, RewardFunction(score))
        study.post_train(settings.methods[method], 0, adaptive_programs.params, folder)
        return saved

    return train


def counts_of_past_steps(lines):
    """By hand, before each step: the counts `[successes, attempts]` of every prompt so far."""
    counts, before = {}, {}
    for step in sorted({line["step"] for line in lines}):
        before[step] = {prompt: tuple(found) for prompt, found in counts.items()}
        for line in (line for line in lines if line["step"] == step):
            found = counts.setdefault(line["prompt"], [0.5, 1.0])
            rewards = [each["reward"] for each in line["completions"]]
            counts[line["prompt"]] = [
                0.9 * found[0] + sum(rewards),
                0.9 * found[1] + len(rewards),
            ]
    return before, counts


def test_an_adaptive_k_comes_from_past_steps_only(train_adaptive, tmp_path):
    saved = train_adaptive(tmp_path)
    lines = [line for line in lines_of(tmp_path) if line["split"] == "train"]
    assert len(lines) == 8 * 5
    before, counts = counts_of_past_steps(lines)
    ks = []
    for line in lines:
        successes, attempts = before[line["step"]].get(line["prompt"], (0.5, 1.0))
        ks.append(float(np.clip(np.log(0.25) / np.log1p(-successes / attempts), 1, 3)))
        rewards = [each["reward"] for each in line["completions"]]
        np.testing.assert_allclose(
            [each["advantage"] for each in line["completions"]],
            estimators.maxpo(rewards, ks[-1]),
            atol=1e-5,
        )
    assert min(ks) == 1
    assert max(ks) == 3
    assert len(set(ks)) > 4
    assert len({line["prompt"] for line in lines}) == 15
    found = np.sort(saved[8].success.successes / saved[8].success.attempts)
    np.testing.assert_allclose(found, np.sort([s / n for s, n in counts.values()]), rtol=1e-6)


def test_a_killed_run_goes_on_with_what_it_had_counted(train_adaptive, tmp_path, monkeypatch):
    whole = dict(train_adaptive(tmp_path / "whole" / "run"))
    with monkeypatch.context() as patch:
        killed(patch, "log", 4)
        with pytest.raises(KilledError):
            train_adaptive(tmp_path / "parts" / "run")
    saved = train_adaptive(tmp_path / "parts" / "run")
    assert files_of(tmp_path / "parts" / "run") == files_of(tmp_path / "whole" / "run")
    assert [each.tobytes() for each in leaves(saved[8])] == [
        each.tobytes() for each in leaves(whole[8])
    ]
    assert np.ptp(whole[8].success.attempts) > 0


def test_a_fixed_k_beside_an_adaptive_one_is_what_it_is_alone(train_adaptive, tmp_path):
    train_adaptive(tmp_path, method=1)
    for line in lines_of(tmp_path):
        if line["split"] == "train":
            rewards = [each["reward"] for each in line["completions"]]
            advantages = [each["advantage"] for each in line["completions"]]
            np.testing.assert_allclose(advantages, estimators.rloo(rewards), atol=1e-6)


@pytest.mark.parametrize("every", [8, 0])
def test_parameters_that_are_not_finite_are_not_saved(
    train, programs, tmp_path, monkeypatch, every
):
    """The loss and the gradient of the update are finite: they are those before it."""

    def update(state, *arguments, step, **options):
        state, found, advantages = original(state, *arguments, step=step, **options)
        if step + 1 == 8:
            params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.inf), state.params)
            state = state._replace(params=params)
        return state, found, advantages

    original = programs.update
    with monkeypatch.context() as patch:
        patch.setattr(programs, "update", update)
        with pytest.raises(FloatingPointError, match=r"^parameters\..* is nan at step 8$"):
            train(tmp_path / "run", evaluation__every=every)
    assert not (tmp_path / "run" / "best").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    train(tmp_path / "run", evaluation__every=every)  # From there it comes to its end.
    assert runs.read_json(tmp_path / "run" / "summary.json")["steps"] == 8


def scripted(monkeypatch, values):
    """Has the evaluations of these steps find these values."""

    def metrics(judge, judged):
        return {METRIC: values[judge.latest[0]]}

    monkeypatch.setattr(Judge, "metrics", metrics)


def parameters_of_steps(monkeypatch):
    """Takes down the parameters that are saved after each step."""
    found, original = {}, runs.Run.save

    def save(run, step, state):
        found[step] = leaves(state.params)
        original(run, step, state)

    monkeypatch.setattr(runs.Run, "save", save)
    return found


def test_the_best_parameters_are_those_after_the_best_step(train, programs, tmp_path, monkeypatch):
    scripted(monkeypatch, {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75})
    found = parameters_of_steps(monkeypatch)
    summary = train(tmp_path, evaluation__every=2, rl__save_every=1)
    assert summary["best"] == {"step": 4, METRIC: 0.75}  # The first of equals.
    params, step = read_checkpoint(tmp_path, programs.params, best=True)
    assert step == 4
    for one, kept in zip(leaves(params), found[4], strict=True):
        np.testing.assert_array_equal(one, kept)
    assert any(np.any(a != b) for a, b in zip(found[4], found[8], strict=True))
    assert [path.name for path in (tmp_path / "best").iterdir() if path.name.isdigit()] == ["4"]


def test_without_evaluations_there_is_no_best(train, programs, tmp_path):
    summary = train(tmp_path, evaluation__every=0)
    assert summary["best"] is None
    assert not (tmp_path / "best").exists()
    with pytest.raises(runs.UsageError, match="expected a run with best parameters, got none"):
        read_checkpoint(tmp_path, programs.params, best=True)


EARLY = {2: 0.5, 4: 0.75, 5: 0.75, 6: 0.5, 8: 0.9}


def test_a_run_ends_after_evaluations_without_a_gain(train, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, EARLY)
    summary = train(tmp_path / "early", evaluation__every=2, evaluation__patience=1)
    assert [row["step"] for row in read_metrics(tmp_path / "early")] == [1, 2, 3, 4, 5, 6]
    assert (summary["steps"], summary["best"]) == (6, {"step": 4, METRIC: 0.75})
    assert (
        f"step 6: {METRIC} was best after step 4, 0.7500, and no better" in capsys.readouterr().err
    )
    summary = train(tmp_path / "late", evaluation__every=2, evaluation__patience=2)
    assert (summary["steps"], summary["best"]) == (8, {"step": 8, METRIC: 0.9})


def test_every_process_ends_at_the_same_step(train, tmp_path, monkeypatch):
    """Also one that sees no line yet of those that the first process logs."""
    scripted(monkeypatch, EARLY)
    names = {name: getattr(runs, name) for name in runs.__all__}
    late = types.SimpleNamespace(**names | {"read_metrics": lambda folder: []})
    monkeypatch.setattr(trainer, "runs", late)
    summary = train(tmp_path, evaluation__every=2, evaluation__patience=1)
    assert (summary["steps"], summary["best"]) == (6, {"step": 4, METRIC: 0.75})


@pytest.mark.parametrize(
    "stop", [("log", 5, True), ("save", 1, False), ("save", 1, True), ("finish", 0, False)]
)
def test_a_run_that_has_ended_early_does_nothing_more(train, programs, tmp_path, monkeypatch, stop):
    scripted(monkeypatch, EARLY)
    changes = {"evaluation__every": 2, "evaluation__patience": 1}
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(whole, **changes)
    with monkeypatch.context() as patch:
        killed(patch, stop[0], stop[1], after=stop[2])
        with pytest.raises(KilledError):
            train(parts, **changes)
    is_saved = stop[0] == "finish" or stop == ("save", 1, True)
    with monkeypatch.context() as patch:
        if is_saved:
            patch.setattr(programs, "update", None)
        train(parts, **changes)
    assert files_of(parts) == files_of(whole)
    assert best_of(parts, programs) == best_of(whole, programs)


def test_a_full_disk_costs_no_more_than_what_the_model_writes(
    train, whole, tmp_path, monkeypatch, capsys
):
    fill_disk(monkeypatch, "completions.jsonl", 3)
    train(tmp_path / "full" / "run")
    found, expected = files_of(tmp_path / "full" / "run"), files_of(whole)
    lines = expected.pop("completions.jsonl").splitlines(keepends=True)
    assert found.pop("completions.jsonl") == b"".join(lines[:3])
    assert found == expected
    assert capsys.readouterr().err.count("completions.jsonl gets no more lines") == 1


MEASURED = {"diagnostics__gradient_variance": 3, "diagnostics__prompts": 2}


def test_measurements_change_nothing_but_what_is_logged(train, tmp_path, monkeypatch):
    plain, measured = tmp_path / "plain" / "run", tmp_path / "measured" / "run"
    found = parameters_of_steps(monkeypatch)
    train(plain, method=1)
    last = found.pop(8)
    train(measured, method=1, **MEASURED)
    for one, other in zip(last, found[8], strict=True):
        np.testing.assert_array_equal(one, other)
    expected, rows = files_of(plain), read_metrics(measured)
    assert files_of(measured)["completions.jsonl"] == expected["completions.jsonl"]
    assert files_of(measured)["config.json"] == expected["config.json"]
    names = ("gradient_variance_maxpo", "gradient_variance_pkpo_loo_minus_one")
    for row, plain_row in zip(rows, read_metrics(plain), strict=True):
        extra = {name: row.pop(name) for name in [*row] if name not in plain_row}
        np.testing.assert_equal(row, plain_row)
        assert "predicted_variance_ratio" in row
        if row["step"] not in (3, 6):
            assert extra == {}
            continue
        assert set(extra) == {*names, "variance_ratio", "variance_ratio_sem"}
        one, other = (extra[name] for name in names)
        assert min(one, other) > 0
        assert extra["variance_ratio"] == pytest.approx(one / other)


def test_groups_of_a_measurement_are_independent(train, tmp_path, monkeypatch):
    found, original = [], trainer.Collector.pairs

    def pairs(*arguments):
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(trainer.Collector, "pairs", pairs)
    train(tmp_path, method=1, **MEASURED)
    for batch in found:
        assert batch.rewards.shape == (4, 4)
        np.testing.assert_array_equal(batch.prompts.tokens[::2], batch.prompts.tokens[1::2])
        assert np.any(batch.prompts.tokens[0] != batch.prompts.tokens[2])
        differs = batch.completions.tokens[::2] != batch.completions.tokens[1::2]
        assert np.any(differs, axis=(1, 2)).all()


def test_a_killed_run_with_measurements_ends_as_if_it_had_not_been(train, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(whole, method=1, **MEASURED)
    with monkeypatch.context() as patch:
        killed(patch, "log", 6)
        with pytest.raises(KilledError):
            train(parts, method=1, **MEASURED)
    train(parts, method=1, **MEASURED)
    assert files_of(parts) == files_of(whole)


def schedule(**changes):
    fields = {"every": 4, "patience": 2, "metric": "m", "judge": None} | changes
    return Schedule(**fields)


def history(*values):
    """With an evaluation at every second step."""
    rows = [{"step": step, "loss": 1.0} for step in range(1, 2 * len(values) + 1)]
    for row, value in zip(rows[1::2], values, strict=True):
        row["m"] = value
    return rows


@pytest.mark.parametrize(
    ("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])]
)
def test_when_an_evaluation_is_due(every, due):
    found = schedule(every=every)
    assert [step for step in range(1, 6) if found.is_due(step, 5)] == due


@pytest.mark.parametrize(
    ("values", "is_best", "over_at_1", "over_at_2", "best"),
    [
        ([0.5], True, False, False, 2),
        ([0.5, 0.7], True, False, False, 4),
        ([0.5, 0.5], False, True, False, 2),  # No gain.
        ([0.5, 0.4, 0.5], False, True, True, 2),
        ([0.5, 0.4, 0.6], True, False, False, 6),
        ([-3.0, -2.0, -2.5], False, True, False, 4),
        # Where all samples failed there is no value, and that is no gain.
        ([np.nan, 0.1], True, False, False, 4),
        ([np.nan, 0.1, 0.2], True, False, False, 6),
        ([0.1, np.nan], False, True, False, 2),
        ([0.1, np.nan, 0.2], True, False, False, 6),
        ([np.nan, np.nan, np.nan], False, True, True, 2),
    ],
)
def test_what_is_best_and_when_it_is_over(values, is_best, over_at_1, over_at_2, best):
    rows = history(*values)
    assert schedule().is_best(rows) == is_best
    assert not schedule(patience=0).is_over(rows)
    assert schedule(patience=1).is_over(rows) == over_at_1
    assert schedule(patience=2).is_over(rows) == over_at_2
    assert schedule().best(rows)["step"] == best


def test_before_any_evaluation_nothing_is_over():
    rows = history()
    assert not schedule(patience=1).is_over(rows)
    assert schedule().best(rows) is None


def test_the_metric_is_that_of_what_is_learned():
    assert metric_of(4, binary=True) == "eval_pass_at_4"
    assert metric_of(2, binary=False) == "eval_max_at_2"
