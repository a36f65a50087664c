"""Which groups are kept, what counts in them, and in which order problems come."""

import itertools
import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from memory import Memory

from maxpo.lm.model import _blocks
from maxpo.lm.model.generation import generate
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.tasks.verification import Outcome, PendingScores, Scores
from maxpo.lm.tasks.weighted import WeightedParts
from maxpo.lm.training import rollouts
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.problems import batch_of_step
from maxpo.lm.training.settings import make_settings
from maxpo.methods import choose_advantages, parse_method
from maxpo.runs import load_config


def make_config(folder, count=12):
    """A config of `count` problems "0=" to which anything may be answered."""
    for name in ("train", "held_out"):
        lines = [json.dumps({"question": f"{i}={name[0]}", "answer": str(i)}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    config = load_config("configs/lm.py:jsonl")
    config.task.train_path = str(folder / "train.jsonl")
    config.task.held_out_path = str(folder / "held_out.jsonl")
    config.methods = ("rloo", "maxpo:k=2")
    config.rl.update(
        steps=4, prompts=4, group_size=4, sampling_batches=2, max_new_tokens=3, eval_k=2
    )
    return config


class Answers(NamedTuple):
    """A stand-in for the model and the verifier: groups with these rewards, by problem."""

    rewards: dict[int, list[float]]
    tokenizer: Any
    keys: list
    failed: float | None = None  # What stands for a failure; None: all that is below 0.

    def draw(self, params, prompts, key):
        self.keys.append(jax.random.key_data(key).tolist())
        N = len(next(iter(self.rewards.values())))
        number = [self.tokenizer.decode(row[kept]) for row, kept in zip(*prompts, strict=True)]
        tokens = np.zeros((len(number), N, 3), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for p, text in enumerate(number):
            digits = self.tokenizer.encode(text.partition("=")[0])
            tokens[p, :, : len(digits)] = digits
            tokens[p, :, len(digits)] = self.tokenizer.eos_id
            mask[p, :, : len(digits) + 1] = True
        return lambda: Completions(tokens, np.zeros(tokens.shape, np.float32), mask)

    def submit(self, problems, completions):
        assert [[int(text) for text in group] for group in completions] == [
            [int(problem.prompt.partition("=")[0])] * len(group)
            for problem, group in zip(problems, completions, strict=True)
        ]
        rewards = np.array([self.rewards[int(group[0])] for group in completions], np.float32)
        valid = rewards >= 0 if self.failed is None else rewards != self.failed
        failures = {"raised": int((~valid).sum()), "timed_out": 0, "not_finite": 0}
        message = "" if valid.all() else "no idea"

        class Pending:
            def result(self):
                return Scores(np.where(valid, rewards, 0), valid, failures, message)

        return Pending()


def collector(config, answers, settings):
    sampler = rollouts.Sampler(answers.draw, settings.tokenizer, answers)
    return rollouts.Collector(config.rl, sampler, settings.train, settings.grading, seed=5)


def collect(config, rewards, step=1, failed=None):
    settings = make_settings(config)
    answers = Answers(rewards, settings.tokenizer, [], failed)
    groups = collector(config, answers, settings)(None, step, jax.random.key(0), rollouts.Timer())
    return [int(problem.prompt.partition("=")[0]) for problem in groups.problems.problems], groups


MIXED = [0.0, 1.0, 0.0, 0.0]
FAILED = [0.0] * 4
SOLVED = [1.0] * 4
HALF_FAILED = [-1.0, -1.0, 1.0, 1.0]  # Below 0: the verifier fails.


def test_every_epoch_is_a_permutation_of_all_problems():
    for size, count in ((4, 12), (5, 12), (30, 12)):
        steps = [batch_of_step(3, step, size, count) for step in range(1, 13)]
        stream = np.concatenate(steps)
        for epoch in range(len(stream) // count):
            part = stream[epoch * count : (epoch + 1) * count]
            assert sorted(part) == list(range(count))
    assert not np.array_equal(batch_of_step(3, 1, 12, 12), batch_of_step(4, 1, 12, 12))
    assert not np.array_equal(batch_of_step(3, 1, 12, 12), batch_of_step(3, 2, 12, 12))


@pytest.mark.parametrize(
    ("rewards", "where", "varied"),
    [
        ([0.0, 1.0], [True, True], True),
        ([0.5, 0.5], [True, True], False),
        ([0.5, 1.0], [True, False], False),
        ([0.5, 1.0], [False, False], False),
        ([1.0, 1.0 + 1e-7], [True, True], True),  # Decided on the raw rewards, without a tolerance.
    ],
)
def test_a_group_has_variance_where_kept_rewards_differ(rewards, where, varied):
    found = rollouts.has_variance(np.array([rewards], np.float32), np.array([where]))
    assert found.tolist() == [varied]


def test_zero_variance_groups_are_kept_or_dropped(tmp_path):
    config = make_config(tmp_path)
    order = batch_of_step(5, 1, 4, 12).tolist()
    rewards = dict.fromkeys(range(12), MIXED) | {order[1]: FAILED, order[2]: SOLVED}
    numbers, groups = collect(config, rewards)
    assert numbers == order
    assert groups.where.all()
    assert groups.metrics["zero_variance_groups"] == 0.5
    assert groups.metrics["mean_reward"] == (0.25 + 0 + 1 + 0.25) / 4
    # One of four correct: 1/2 of the pairs have it.
    assert groups.metrics["pass_at_k"] == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    assert groups.metrics["truncated"] == 0

    config.rl.zero_variance_groups = "drop"
    numbers, groups = collect(config, rewards)
    assert numbers == order
    assert groups.where.all(axis=1).tolist() == [True, False, False, True]
    assert groups.where.any(axis=1).tolist() == [True, False, False, True]
    assert groups.valid.all()


def test_oversampling_keeps_live_groups_first_and_stops_at_enough(tmp_path):
    config = make_config(tmp_path)
    config.rl.update(zero_variance_groups="oversample", oversampling=3)
    order = batch_of_step(5, 1, 12, 12).tolist()
    few = dict.fromkeys(range(12), FAILED) | {order[i]: MIXED for i in (1, 5, 9)}
    numbers, groups = collect(config, few)
    assert numbers == [order[i] for i in (1, 5, 9, 0)]
    assert groups.where.all(axis=1).tolist() == [True, True, True, False]
    assert not groups.where[3].any()
    assert groups.metrics["sampled_groups"] == 12
    assert groups.metrics["zero_variance_groups"] == pytest.approx(9 / 12)
    for array in groups.completions:
        assert len(array) == 4
    # The arrays are those of the problems that are kept.
    digits = make_settings(config).tokenizer.encode(str(order[5]))
    assert groups.completions.tokens[1, 0, : len(digits)].tolist() == digits
    np.testing.assert_array_equal(groups.rewards, [MIXED, MIXED, MIXED, FAILED])
    # How often problems are solved is known of all that were sampled.
    assert groups.numbers.tolist() == numbers
    assert groups.attempts.numbers.tolist() == order
    np.testing.assert_array_equal(groups.attempts.correct, [few[number] for number in order])
    assert groups.attempts.valid.all()

    enough = dict.fromkeys(range(12), MIXED) | {order[2]: SOLVED}
    numbers, groups = collect(config, enough)
    assert numbers == [order[i] for i in (0, 1, 3, 4)]
    assert groups.metrics["sampled_groups"] == 8
    assert groups.where.all()
    assert groups.attempts.numbers.tolist() == order[:8]


@pytest.mark.parametrize("prompts", [2, 4])
def test_pairs_are_of_the_first_prompts_of_a_step_and_drawn_as_its_groups_are(tmp_path, prompts):
    config = make_config(tmp_path)
    config.rl.failures = "mask"
    settings = make_settings(config)
    rewards = dict.fromkeys(range(12), MIXED) | {5: SOLVED, 7: HALF_FAILED}
    for step in (1, 2):
        answers = Answers(rewards, settings.tokenizer, [])
        found = collector(config, answers, settings).pairs(None, step, prompts, jax.random.key(1))
        order = batch_of_step(5, step, 4, 12)[:prompts]
        np.testing.assert_array_equal(
            found.prompts.tokens, np.repeat(settings.train.prompts.tokens[order], 2, axis=0)
        )
        np.testing.assert_array_equal(
            found.rewards, [np.maximum(rewards[number], 0) for number in np.repeat(order, 2)]
        )
        np.testing.assert_array_equal(
            found.where, [np.array(rewards[number]) >= 0 for number in np.repeat(order, 2)]
        )
        np.testing.assert_array_equal(found.valid, found.where)
        # As many at a time as in training, 4 / 2, each draw with a key of its own.
        assert len(answers.keys) == prompts
        assert len(set(map(tuple, answers.keys))) == prompts


def test_pairs_of_groups_that_are_dropped_count_for_nothing(tmp_path):
    config = make_config(tmp_path)
    config.rl.zero_variance_groups = "drop"
    settings = make_settings(config)
    first = batch_of_step(5, 1, 4, 12)[0]
    answers = Answers(dict.fromkeys(range(12), MIXED) | {first: SOLVED}, settings.tokenizer, [])
    found = collector(config, answers, settings).pairs(None, 1, 2, jax.random.key(1))
    assert found.where.all(axis=1).tolist() == [False, False, True, True]
    assert found.valid.all()


def test_a_failed_verification_is_a_zero_or_no_sample(tmp_path):
    config = make_config(tmp_path)
    rewards = dict.fromkeys(range(12), HALF_FAILED)
    _, groups = collect(config, rewards)
    assert groups.rewards[0].tolist() == [0, 0, 1, 1]
    assert groups.where.all()
    assert groups.valid.all()
    assert groups.metrics["zero_variance_groups"] == 0
    assert groups.metrics["failed"] == 0.5
    assert groups.metrics["failed_raised"] == 8
    assert groups.metrics["failed_timed_out"] == 0

    config.rl.failures = "mask"
    _, groups = collect(config, rewards)
    assert groups.where[0].tolist() == [False, False, True, True]
    assert groups.metrics["zero_variance_groups"] == 1  # Those that are left are all correct.
    assert groups.metrics["mean_reward"] == 1


GRADED = [-0.1, -0.2, -9.0, -0.4]  # -9 stands for a failure.


@pytest.mark.parametrize("failures", ["zero", "mask"])
def test_a_failure_never_beats_a_score_below_0(tmp_path, failures):
    config = make_config(tmp_path)
    config.task.update(binary=False, success=-0.15, verifier="lm_verifier:unreliable")
    config.rl.update(failures=failures, eval_k=4)
    config.evaluation.samples = 4
    _, groups = collect(config, dict.fromkeys(range(12), GRADED), failed=-9.0)
    np.testing.assert_array_equal(groups.rewards[0], np.float32([-0.1, -0.2, -0.4, -0.4]))
    assert groups.metrics["max_at_k"] == pytest.approx(-0.1)
    assert groups.metrics["pass_at_k"] == 1
    assert groups.metrics["failed"] == 0.25
    if failures == "mask":
        assert groups.where[0].tolist() == [True, True, False, True]
        assert groups.metrics["mean_reward"] == pytest.approx(-0.7 / 3)
    else:
        assert groups.where.all()
        assert groups.metrics["mean_reward"] == pytest.approx(-1.1 / 4)

    config.rl.eval_k = 1
    _, groups = collect(config, dict.fromkeys(range(12), GRADED), failed=-9.0)
    assert groups.metrics["pass_at_k"] == 0.25  # A failure is not correct, whatever its reward.


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("failures", ["zero", "mask"])
def test_where_all_fail_nothing_is_correct_and_nothing_is_learned(tmp_path, failures, binary):
    config = make_config(tmp_path)
    success = 0.5 if binary else -0.5
    config.task.update(binary=binary, success=success, verifier="lm_verifier:unreliable")
    config.rl.failures = failures
    _, groups = collect(config, dict.fromkeys(range(12), [-9.0] * 4), failed=-9.0)
    assert groups.metrics["pass_at_k"] == 0
    assert groups.metrics["zero_variance_groups"] == 1
    assert np.isnan(groups.metrics["mean_reward"]) == (failures == "mask")
    assert groups.where.any() == (failures == "zero")
    assert np.isfinite(groups.rewards).all()
    order = batch_of_step(5, 1, 4, 12)
    text = str(order[0])
    assert groups.scores.message == f"prompt '{text}=t', completion '{text}':\nno idea"


@pytest.mark.parametrize("binary", [True, False])
def test_of_several_parts_one_decides_and_all_are_logged(tmp_path, binary, monkeypatch):
    config = make_config(tmp_path)
    config.task.update(success=1.0, binary=binary)

    def submit(answers, problems, completions):
        shape = (len(problems), len(completions[0]))
        pending = PendingScores(
            shape,
            WeightedParts(
                {"form": _unused, "right": _unused}, {"form": 0.5, "right": 2}, decides="right"
            ),
        )
        for row, column in np.ndindex(shape):
            form, right = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)][column]
            failed = Outcome(failure="raised", message="no idea")
            pending.record(row, column, failed if column == 3 else Outcome((form, right)))
        return pending

    monkeypatch.setattr(Answers, "submit", submit)
    _, groups = collect(config, dict.fromkeys(range(12), MIXED))
    expected = [0.0, 1.0, 1.0, 0.0] if binary else [0.5, 2.0, 2.5, 0.0]
    assert groups.rewards.tolist() == [expected] * 4
    assert groups.metrics["reward_form"] == pytest.approx(2 / 3)
    assert groups.metrics["reward_right"] == pytest.approx(2 / 3)
    assert groups.metrics["mean_reward"] == pytest.approx(np.mean(expected))
    # Of the 6 pairs only that of the first sample and the last has nothing right.
    assert groups.metrics["pass_at_k"] == pytest.approx(5 / 6)
    assert {name: part.shape for name, part in groups.scores.parts.items()} == {
        "form": (4, 4),
        "right": (4, 4),
    }
    assert groups.scores.decides == "right"


def test_where_all_fail_parts_have_no_mean(tmp_path, monkeypatch):
    def submit(answers, problems, completions):
        shape = (len(problems), len(completions[0]))
        pending = PendingScores(shape, WeightedParts({"right": _unused}, {"right": 1}))
        for row, column in np.ndindex(shape):
            pending.record(row, column, Outcome(failure="timed_out", message="late"))
        return pending

    monkeypatch.setattr(Answers, "submit", submit)
    _, groups = collect(make_config(tmp_path), dict.fromkeys(range(12), MIXED))
    assert np.isnan(groups.metrics["reward_right"])


def _unused(problem, completion):
    raise NotImplementedError


@pytest.fixture
def truncated_groups(tmp_path, monkeypatch):
    """A function that collects groups with given rewards, some of whose samples do not end."""
    is_end: list[bool] = []

    original = Answers.draw

    def draw(answers, params, prompts, key):
        found = original(answers, params, prompts, key)()
        tokens = np.where(
            found.tokens == answers.tokenizer.eos_id, answers.tokenizer.pad_id, found.tokens
        )
        ended = np.array(is_end)[:, None]
        return lambda: found._replace(
            tokens=np.where(ended, found.tokens, tokens),
            mask=found.mask & (ended | (tokens != answers.tokenizer.pad_id)),
        )

    monkeypatch.setattr(Answers, "draw", draw)
    config = make_config(tmp_path)

    def collected(rewards, truncated, *, ended=(True, False, True, False), **rl):
        is_end[:] = ended
        penalty = 0.25 if truncated == "penalty" else 0.0
        config.rl.update(truncated=truncated, truncation_penalty=penalty, **rl)
        return collect(config, dict.fromkeys(range(12), rewards))[1]

    return collected


@pytest.mark.parametrize(
    ("given", "truncated", "rewards", "valid", "varied"),
    [
        ([0, 1, 1, 0], "keep", [0, 1, 1, 0], [1, 1, 1, 1], True),
        ([0, 1, 1, 0], "mask", [0, 1, 1, 0], [1, 0, 1, 0], True),
        ([0, 1, 1, 0], "penalty", [0, 0.75, 1, -0.25], [1, 1, 1, 1], True),
        # Only those that ended are compared.
        ([1, 0, 1, 0], "mask", [1, 0, 1, 0], [1, 0, 1, 0], False),
        # It is the penalty that makes a difference.
        ([1, 1, 1, 1], "penalty", [1, 0.75, 1, 0.75], [1, 1, 1, 1], True),
        ([1, 1, 1, 1], "keep", [1, 1, 1, 1], [1, 1, 1, 1], False),
        # A failed sample, here the first two, is masked beside the truncated ones or is a 0.
        ([-1, -1, 1, 1], "mask", [0, 0, 1, 1], [1, 0, 1, 0], True),
        ([-1, -1, 1, 1], "penalty", [0, -0.25, 1, 0.75], [1, 1, 1, 1], True),
    ],
)
@pytest.mark.parametrize("groups", ["keep", "drop"])
def test_truncated_samples(truncated_groups, given, truncated, rewards, valid, varied, groups):
    found = truncated_groups(given, truncated, zero_variance_groups=groups)
    assert found.rewards.tolist() == [rewards] * 4
    assert found.valid.tolist() == [[bool(kept) for kept in valid]] * 4
    counts = varied or groups == "keep"
    assert found.where.tolist() == [[bool(kept) and counts for kept in valid]] * 4
    assert found.metrics["truncated"] == 0.5
    assert found.metrics["zero_variance_groups"] == (not varied)
    assert found.metrics["mean_reward"] == np.mean(np.array(rewards)[np.array(valid, bool)])
    # What is correct is not changed by how it is learned from: of 6 pairs those with a right one.
    right = [reward == 1 for reward in given]
    pairs = [max(pair) for pair in itertools.combinations(right, 2)]
    assert found.metrics["pass_at_k"] == pytest.approx(np.mean(pairs))


def test_failed_and_truncated_samples_are_both_masked(truncated_groups):
    found = truncated_groups([-1, -1, 1, 1], "mask", failures="mask")
    assert found.valid.tolist() == [[False, False, True, False]] * 4
    assert not found.where[:, [0, 1, 3]].any()
    assert found.metrics["zero_variance_groups"] == 1


@pytest.mark.parametrize("method", ["rloo", "grpo", "maxpo:k=2", "pkpo:k=2"])
def test_advantages_of_a_group_with_masked_samples_are_those_of_the_others(
    truncated_groups, method
):
    advantages = choose_advantages([parse_method(method)], steps=10)
    found = truncated_groups([0, 1, 1, 0], "mask", ended=(True, False, True, True))
    groups = np.array(advantages(found.rewards, found.valid, 0, 0))
    others = found.rewards[:, [0, 2, 3]]
    alone = np.array(advantages(others, np.ones((4, 3), bool), 0, 0))
    np.testing.assert_allclose(groups[:, [0, 2, 3]], alone, rtol=1e-6)
    assert np.abs(alone[:, 1]).min() > 0
    assert not groups[:, 1].any()
    # With the second sample, which is as good as the third, they would be others.
    whole = np.array(advantages(found.rewards, np.ones((4, 4), bool), 0, 0))
    assert np.any(whole[:, [0, 2, 3]] != groups[:, [0, 2, 3]])


def test_each_process_puts_its_scores_in_their_places(monkeypatch):
    # Process 1 of 2 has problems 1 and 3; the other one's rows are what it adds.
    parts = {"b": np.float32([[1, 2], [3, 4]]), "a": np.float32([[5, 6], [7, 8]])}
    failures = {"raised": 0, "timed_out": 0, "not_finite": 0}
    mine = Scores(parts["b"] * 2, np.ones((2, 2), bool), failures, "", parts, "b")
    monkeypatch.setattr(rollouts.parallel, "sum_over_processes", lambda tree: tree)
    monkeypatch.setattr(rollouts.parallel, "first_text", lambda text: text)
    found = rollouts._of_all_processes(mine, np.array([1, 3]), (4, 2))
    assert found.rewards.tolist() == [[0, 0], [2, 4], [0, 0], [6, 8]]
    assert found.valid.any(axis=1).tolist() == [False, True, False, True]
    assert list(found.parts) == ["b", "a"]
    assert found.parts["a"].tolist() == [[0, 0], [5, 6], [0, 0], [7, 8]]
    assert found.deciding.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]


def test_a_process_without_a_row_has_the_shape_of_all(monkeypatch):
    monkeypatch.setattr(rollouts.parallel, "sum_over_processes", lambda tree: tree)
    mine = RewardFunction(WeightedParts({"a": len, "b": len}, {"a": 1, "b": 1})).submit([], [])
    found = rollouts._of_all_processes(mine.result(), np.arange(0), (1, 3))
    assert found.rewards.tolist() == found.parts["b"].tolist() == [[0, 0, 0]]
    assert found.valid.tolist() == [[False] * 3]


def scores_of(raised, timed_out, scored, message="no idea"):
    valid = np.arange(raised + timed_out + scored)[None] >= raised + timed_out
    failures = {"raised": raised, "timed_out": timed_out, "not_finite": 0}
    return Scores(np.zeros(valid.shape, np.float32), valid, failures, message)


def test_the_first_failure_is_said_once_and_a_step_without_a_score_stops(capsys):
    log = FailureLog()
    log.note("step 1", scores_of(0, 0, 4, ""))
    assert capsys.readouterr().err == ""
    log.note("step 2", scores_of(1, 0, 3))
    log.note("step 3", scores_of(1, 0, 3, "another one"))
    assert capsys.readouterr().err == "warning: step 2: a verification failed: no idea\n"
    # Time limits may be the machine's fault: a word, and on.
    for step in (4, 5):
        log.note(f"step {step}", scores_of(3, 1, 0))
    assert capsys.readouterr().err == (
        "warning: step 4: the verification of all 4 samples failed "
        "(3 raised, 1 timed out, 0 not finite)\n"
    )
    for what in ("step 6", "evaluation of rloo"):
        with pytest.raises(
            RuntimeError, match=rf"{what}: the verifier raised on all 4 samples.*no idea"
        ):
            log.note(what, scores_of(4, 0, 0))


def test_each_batch_of_each_round_has_its_own_key(tmp_path):
    config = make_config(tmp_path)
    config.rl.update(zero_variance_groups="oversample", oversampling=2)
    settings = make_settings(config)
    answers = Answers(dict.fromkeys(range(12), FAILED), settings.tokenizer, [])
    found = collector(config, answers, settings)
    found(None, 1, jax.random.key(0), rollouts.Timer())
    assert len({tuple(key) for key in answers.keys}) == 4
    found(None, 1, jax.random.key(0), rollouts.Timer())
    assert answers.keys[:4] == answers.keys[4:]


def test_binary_rewards_are_successes_and_graded_ones_the_scores(tmp_path):
    config = make_config(tmp_path)
    config.task.update(success=0.75, binary=True)
    rewards = {number: [0.1, 0.8, 0.75, 0.5] for number in range(12)}
    _, groups = collect(config, rewards)
    assert groups.rewards[0].tolist() == [0, 1, 1, 0]
    config.task.binary = False
    _, groups = collect(config, rewards)
    np.testing.assert_allclose(groups.rewards[0], [0.1, 0.8, 0.75, 0.5])
    assert groups.metrics["mean_reward"] == pytest.approx(0.5375)
    assert groups.metrics["pass_at_k"] == pytest.approx(1 - 1 / 6)


def test_the_next_batch_is_started_before_this_one_is_scored(tmp_path, monkeypatch):
    """It is, and no batch waits for another one to end before it is scored."""
    events = []
    draw, submit = Answers.draw, Answers.submit

    def started(answers, *arguments):
        finish = draw(answers, *arguments)
        events.append("start")

        def finished():
            events.append("finish")
            return finish()

        return finished

    def submitted(answers, *arguments):
        events.append("score")
        return submit(answers, *arguments)

    monkeypatch.setattr(Answers, "draw", started)
    monkeypatch.setattr(Answers, "submit", submitted)
    collect(make_config(tmp_path), dict.fromkeys(range(12), MIXED))
    assert events == ["start", "finish", "start", "score", "finish", "score"]


def test_long_completions_are_drawn_in_blocks(monkeypatch):
    """Short ones by one program; they are what `generate` draws."""
    monkeypatch.setattr(_blocks, "BLOCK", 4)
    blocks = []
    original = _blocks.Blocks.finish
    monkeypatch.setattr(
        _blocks.Blocks, "finish", lambda self: (blocks.append(self), original(self))[1]
    )

    class Tokens:
        eos_id, pad_id = 3, 4

    graph, params = nnx.split(Memory())
    prompts = Prompts(np.array([[1, 2], [0, 5]]), np.ones((2, 2), bool))
    for length, count in ((5, 0), (7, 1)):
        draw = rollouts.make_draw(
            graph, Tokens(), group_size=3, max_new_tokens=length, temperature=0.9
        )
        found = draw(params, prompts, jax.random.key(0))()
        expected = generate(
            Memory(),
            prompts,
            group_size=3,
            max_new_tokens=length,
            temperature=0.9,
            eos_id=3,
            pad_id=4,
            key=jax.random.key(0),
        )
        assert len(blocks) == 2 * count
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.mask, expected.mask)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-6)
