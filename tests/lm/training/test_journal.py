"""Lines of `completions.jsonl`, of groups that are made by hand."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from full_disk import fill_disk
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.evaluate import evaluate
from maxpo.lm.model.prompts import Completions
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import CharTokenizer
from maxpo.lm.tasks.weighted import WeightedParts
from maxpo.lm.training.evaluation import Judge
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.journal import Journal
from maxpo.lm.training.problems import batch_of_step, encode
from maxpo.lm.training.rollouts import Collector, Rollouts, Sampler, Timer

TOKENIZER = CharTokenizer("abcdefgh?!x")
# The second token that ends, beside 1; no character of the alphabet.
OTHER_END = TOKENIZER.vocab_size
PROBLEMS = [Problem(f"{letter}?", letter.upper()) for letter in "abcdefgh"]
LIVE = "cfgh"  # Problems of whose samples one is right; of the others none is.
RL = {
    "prompts": 2,
    "group_size": 3,
    "eval_k": 2,
    "sampling_batches": 1,
    "zero_variance_groups": "keep",
    "oversampling": 1,
    "failures": "zero",
    "truncated": "keep",
    "truncation_penalty": 0.0,
}


class TwoEnds(CharTokenizer):
    """Characters, and a second token that ends."""

    end_ids = (1, OTHER_END)


def draw(params, prompts, key):
    """Of "c?": "c" and its end; "c!" and the other end; "c!x", which is truncated."""
    letters = prompts.tokens[:, -2]
    tokens = np.zeros((len(letters), 3, 3), np.int32)
    mark, cross = TOKENIZER.encode("!x")
    tokens[..., 0] = letters[:, None]
    tokens[:, 0, 1] = TOKENIZER.eos_id
    tokens[:, 1:, 1] = mark
    tokens[:, 1, 2] = OTHER_END
    tokens[:, 2, 2] = cross
    mask = np.ones(tokens.shape, bool)
    mask[:, 0, 2] = False
    return lambda: Completions(tokens, np.zeros(tokens.shape, np.float32), mask)


def score(problem, text):
    """0.75 for "c!" of a live problem, 0.25 for other texts; "c!x" of c raises, as b's all do."""
    if text in ("c!x", "b", "b!", "b!x"):
        raise LookupError(f"no score of {text}")
    assert text[0] == problem.prompt[0]
    return 0.75 if len(text) == 2 and text[0] in LIVE else 0.25


class Step(NamedTuple):
    groups: Rollouts
    advantages: np.ndarray
    collect: Collector


def collect(step=1, **changes):
    rl = ConfigDict({**RL, **changes})
    train, _ = encode(PROBLEMS, [], TOKENIZER)
    sampler = Sampler(draw, TwoEnds(TOKENIZER.alphabet), RewardFunction(score))
    collector = Collector(rl, sampler, train, Grading(0.5, True), seed=0)
    groups = collector(None, step, jax.random.key(0), Timer())
    advantages = np.arange(groups.rewards.size, dtype=np.float32).reshape(groups.rewards.shape) - 2
    return Step(groups, advantages, collector)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def write(folder, journal, steps):
    with runs.Run({"a": 1}, folder) as run:
        for number, each in steps:
            journal.train(run, number, *each)
    return lines_of(folder) if (folder / "completions.jsonl").exists() else []


def expected_completions(letter, advantages, penalty=0.0):
    """What is written of a group, from what `draw` and `score` do."""
    found = []
    for n, text in enumerate((letter, f"{letter}!", f"{letter}!x")):
        fails = text in ("c!x", "b", "b!", "b!x")
        value = 0.75 if n == 1 and letter in LIVE else 0.25
        reward = float(not fails and value >= 0.5) - penalty * (n == 2)
        found.append(
            {
                "text": text,
                "score": None if fails else value,
                "correct": not fails and value >= 0.5,
                "reward": reward,
                "advantage": advantages[n],
                "end": "truncated" if n == 2 else "ended",
                "tokens": (2, 3, 3)[n],
                "failure": f"LookupError: no score of {text}" if fails else None,
            }
        )
    return found


def assert_is_line(line, step, letter, advantages, penalty=0.0):
    assert {name: line[name] for name in ("step", "split", "prompt", "answer")} == {
        "step": step,
        "split": "train",
        "prompt": f"{letter}?",
        "answer": letter.upper(),
    }
    found = line["completions"]
    for each in found:  # The last line of a traceback is what went wrong.
        each["failure"] = each["failure"] and each["failure"].splitlines()[-1]
    assert found == expected_completions(letter, advantages, penalty)


def test_a_line_of_training_has_all_of_its_group(tmp_path):
    steps = [(step, collect(step)) for step in (1, 2, 3, 4)]
    lines = write(tmp_path, Journal(1, 2), steps)
    order = [i for step in (1, 2, 3, 4) for i in batch_of_step(0, step, 2, 8).tolist()]
    assert sorted(order) == list(range(8))  # Every problem once, those whose samples fail as well.
    for number, (line, problem) in enumerate(zip(lines, order, strict=True)):
        advantages = [[-2.0, -1.0, 0.0], [1.0, 2.0, 3.0]][number % 2]
        assert_is_line(line, 1 + number // 2, "abcdefgh"[problem], advantages)


def test_the_reward_is_the_one_that_is_learned_from(tmp_path):
    each = collect(1, truncated="penalty", truncation_penalty=0.25)
    first = batch_of_step(0, 1, 2, 8)[0]
    (line,) = write(tmp_path, Journal(1, 1), [(1, each)])
    assert_is_line(line, 1, "abcdefgh"[first], [-2.0, -1.0, 0.0], penalty=0.25)


@pytest.mark.parametrize("step", [1, 2])
def test_after_oversampling_texts_and_messages_are_those_of_the_kept_groups(tmp_path, step):
    each = collect(step, prompts=4, zero_variance_groups="oversample", oversampling=2)
    order = ["abcdefgh"[i] for i in batch_of_step(0, step, 8, 8)]
    live = [letter for letter in order if letter in LIVE]
    assert order[:4] != live  # They do come in another order than they were drawn in.
    lines = write(tmp_path, Journal(1, 9), [(1, each)])
    for number, (line, letter) in enumerate(zip(lines, live, strict=True)):
        assert_is_line(line, 1, letter, [3.0 * number + n - 2 for n in range(3)])
    # The message of one sample of one of them, and of no other.
    failures = [c["failure"] for line in lines for c in line["completions"] if c["failure"]]
    assert failures == ["LookupError: no score of c!x"]


@pytest.mark.parametrize(
    ("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (9, [1])]
)
def test_how_often_and_how_many(tmp_path, every, expected):
    each = collect()
    steps = [(step, each) for step in range(1, 7)]
    for groups in (1, 2, 5):
        lines = write(tmp_path / str(groups), Journal(every, groups), steps)
        assert [line["step"] for line in lines] == np.repeat(expected, min(groups, 2)).tolist()


def test_what_fills_up_a_batch_is_not_scored():
    seen = []

    def count(problem, text):
        seen.append(text)
        raise LookupError(text)

    _, held_out = encode(PROBLEMS, PROBLEMS, TOKENIZER)
    sampler = Sampler(draw, TwoEnds(TOKENIZER.alphabet), RewardFunction(count))
    judged = Judge(sampler, held_out, jax.random.key(0), 3, Grading(0.5, True))(None, 7)
    # 8 problems in 3 batches of 3, 3 samples of each.
    assert len(seen) == judged.scores.failures["raised"] == judged.scores.valid.size == 8 * 3
    assert sorted(set(seen)) == sorted(f"{a}{end}" for a in "abcdefgh" for end in ("", "!", "!x"))
    assert set(judged.scores.messages) == {(row, n) for row in range(8) for n in range(3)}


@pytest.mark.parametrize(("every", "groups"), [(4, 3), (4, 99), (0, 3)])
def test_a_line_of_an_evaluation_has_no_advantage(tmp_path, every, groups):
    _, held_out = encode(PROBLEMS, PROBLEMS[::-1], TOKENIZER)
    judge = Judge(collect().collect.sampler, held_out, jax.random.key(0), 3, Grading(0.5, True))
    with runs.Run({"a": 1}, tmp_path) as run:
        Journal(every, groups).held_out(run, 7, judge, judge(None, 7))
    if not every:
        assert not (tmp_path / "completions.jsonl").exists()
        return
    lines = lines_of(tmp_path)
    assert len(lines) == min(groups, 8)
    for line, letter in zip(lines, "hgfedcba", strict=False):
        assert line.pop("split") == "held_out"
        assert_is_line({**line, "split": "train"}, 7, letter, [None] * 3)


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    each, journal = collect(), Journal(1, 1)
    fill_disk(monkeypatch, "completions.jsonl", 2)
    with runs.Run({"a": 1}, tmp_path) as run:
        for step in range(1, 6):
            journal.train(run, step, *each)
            run.log(step, {"loss": 1.0})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    assert [row["step"] for row in runs.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    printed = capsys.readouterr().err
    assert printed.count("warning: completions.jsonl gets no more lines, and the run goes on") == 1
    assert printed.count("No space left on device") == 1


def test_a_file_that_cannot_be_opened_ends_nothing(tmp_path, capsys):
    with runs.Run({"a": 1}, tmp_path) as run:
        (tmp_path / "completions.jsonl").mkdir()
        for step in (1, 2):
            Journal(1, 1).train(run, step, *collect())
    assert capsys.readouterr().err.count("warning: completions.jsonl gets no more lines") == 1


def test_of_a_reward_with_parts_one_decides_what_is_correct(tmp_path):
    parts = {"right": lambda _, text: len(text) == 2, "long": lambda _, text: -float(len(text))}
    reward = WeightedParts(parts, {"right": 1.0, "long": 1.0}, decides="right")
    _, held_out = encode(PROBLEMS, PROBLEMS, TOKENIZER)
    sampler = Sampler(draw, TwoEnds(TOKENIZER.alphabet), RewardFunction(reward))
    judge = Judge(sampler, held_out, jax.random.key(0), 8, Grading(1.0, False))
    with runs.Run({"a": 1}, tmp_path) as run:
        Journal(1, 8).held_out(run, 7, judge, judge(None, 7))
    for line in lines_of(tmp_path):  # The sum of the right one is -1, less than its success.
        assert [each["correct"] for each in line["completions"]] == [False, True, False]
        assert [each["score"] for each in line["completions"]] == [-1, -1, -3]


def test_its_lines_are_read_as_scores(tmp_path):
    write(tmp_path, Journal(1, 2), [(step, collect(step)) for step in (1, 2, 3)])
    path = tmp_path / "completions.jsonl"
    found = evaluate({"run": path}, where={"step": "last"}, success=0.5)
    letters = [PROBLEMS[i].prompt[0] for i in batch_of_step(0, 3, 2, 8).tolist()]
    (source,) = found.sources["run"]
    assert (source.samples, source.problems) == (6, 2)
    failed = sum({"b": 3, "c": 1}.get(letter, 0) for letter in letters)
    assert source.unscored == failed
    correct = np.mean([letter in LIVE for letter in letters])
    assert found.pass_at_k.curves["run"].value.tolist() == pytest.approx(
        [correct / 3, correct * 2 / 3, correct]
    )
