"""Rewards of several parts: the sum, the parts beside it, and whose failure it is."""

import json
import pickle

import numpy as np
import pytest
import verifiers

from maxpo.lm.tasks.answers import numeric_verifier
from maxpo.lm.tasks.files import make_file_task
from maxpo.lm.tasks.rewards import RewardFunction, load_rewards
from maxpo.lm.tasks.text import Problem, is_text_only, preloads
from maxpo.lm.tasks.verification import FAILURES, VerifierPool
from maxpo.lm.tasks.weighted import MOST_PARTS, WeightedParts

NAMES = {"sum": "verifiers:obey", "length": "verifiers:length"}
WEIGHTS = {"sum": 2.0, "length": -0.5}
PROBLEM = Problem("", "", {"number": 10.0})


@pytest.fixture(scope="module")
def reward():
    return load_rewards(NAMES, WEIGHTS)


@pytest.fixture(scope="module")
def pool(reward):
    with VerifierPool(reward, workers=1, time_limit=0.5) as pool:
        yield pool


def score(scorer, *completions):
    return scorer.submit([PROBLEM], [completions]).result()


@pytest.mark.parametrize("where", ["here", "workers"])
def test_the_sum_and_its_parts(reward, pool, where):
    scores = score(pool if where == "workers" else RewardFunction(reward), "1", "25", "1")
    # 10 and the number; the number of its digits.
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "sum": [[11.0, 35.0, 11.0]],
        "length": [[1.0, 2.0, 1.0]],
    }
    assert scores.rewards.tolist() == [[2 * 11 - 0.5, 2 * 35 - 1, 2 * 11 - 0.5]]
    assert scores.deciding is scores.parts["sum"]
    assert scores.valid.all()
    assert {part.dtype for part in scores.parts.values()} == {np.dtype(np.float32)}
    assert reward(PROBLEM, "25") == 69


@pytest.mark.parametrize(
    ("completion", "failure", "message"),
    [
        ("raise", "raised", "part 'sum': Traceback"),
        ("none", "not_finite", "part 'sum': the reward was None"),
        ("nan", "not_finite", "part 'sum': the reward was nan"),
        ("beyond float32", "not_finite", "part 'sum': the reward was 1e+39"),
        ("2e38", "not_finite", "the reward was 4e+38"),  # Twice that is no float32.
        ("sleep", "timed_out", "part 'sum': took longer than 0.5 s"),
        ("os._exit", "raised", "the process ended without an answer"),
    ],
)
def test_a_part_that_fails_fails_the_sample_and_is_named(pool, completion, failure, message):
    scores = score(pool, "1", completion)
    assert scores.valid.tolist() == [[True, False]]
    assert scores.failures == {**dict.fromkeys(FAILURES, 0), failure: 1}
    assert scores.message.startswith(message)
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "sum": [[11.0, 0.0]],
        "length": [[1.0, 0.0]],
    }


@pytest.mark.parametrize("completion", ["raise", "nan"])
def test_in_this_process_it_is_named_too(completion):
    reward = load_rewards(dict(reversed(NAMES.items())), WEIGHTS)
    scores = score(RewardFunction(reward), "1", completion)
    assert scores.valid.tolist() == [[True, False]]
    assert scores.message.startswith("part 'sum': ")
    assert scores.parts["length"].tolist() == [[1.0, 0.0]]


def test_a_part_that_is_named_decides():
    reward = load_rewards(NAMES, WEIGHTS, decides="length")
    scores = score(RewardFunction(reward), "25")
    assert scores.deciding.tolist() == [[2.0]]


def test_without_parts_the_reward_decides():
    scores = score(RewardFunction(verifiers.obey), "25")
    assert scores.parts == {}
    assert scores.deciding is scores.rewards


def test_parts_for_which_completions_are_text_share_processes():
    text = WeightedParts({"a": numeric_verifier, "b": verifiers.length}, {"a": 1, "b": 1})
    assert is_text_only(text)
    assert is_text_only(pickle.loads(pickle.dumps(text)))
    both = {"a": numeric_verifier, "b": verifiers.obey}
    assert not is_text_only(WeightedParts(both, {"a": 1, "b": 1}))
    with VerifierPool(
        WeightedParts({"pid": verifiers.state, "n": verifiers.length}, {"pid": 1, "n": 0}),
        workers=1,
        time_limit=5.0,
    ) as pool:
        # One chunk of 1 + 24 / 4, and then others.
        found = score(pool, *[str(i) for i in range(24)]).parts["pid"][0]
    assert len(set(found[:7].tolist())) == 1


def test_what_parts_load_is_loaded_once_before():
    loaded = []

    @preloads(lambda: loaded.append("b"))
    def late(problem, completion):
        return 1.0

    WeightedParts({"a": verifiers.length, "b": late}, {"a": 1, "b": 1}).preload()
    assert loaded == ["b"]


def test_answers_are_checked_for_the_parts(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "x"}))
    reward = load_rewards(
        {"length": "verifiers:length", "right": "numeric"}, {"length": 0.1, "right": 1.0}
    )
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: field 'answer': the numeric verifier exp"):
        make_file_task(path, path, verifier=reward)
    with pytest.raises(ValueError, match="the numeric verifier needs answer_field, got None"):
        make_file_task(path, path, verifier=reward, answer_field=None)
    path.write_text(json.dumps({"question": "?", "answer": 7}))
    task = make_file_task(path, path, verifier=reward)
    assert task.verifier(task.train[0], "It is 7") == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {}, "weights": {}}, "parts: expected 1 to 100, got 0"),
        (
            {"rewards": {f"p{i}": "numeric" for i in range(MOST_PARTS + 1)}},
            "parts: expected 1 to 100, got 101",
        ),
        ({"rewards": {"a b": "numeric"}}, "parts: expected names such as 'format', got 'a b'"),
        (
            {"rewards": {"sum": "numbers", "length": "numeric"}},
            "rewards: sum: verifier: expected 'exact' or .* or 'module:function', got 'numbers'",
        ),
        ({"rewards": {"sum": "nowhere:f"}}, "rewards: sum: verifier 'nowhere:f' cannot be impor"),
        ({"weights": {"sum": 1.0}}, "weights: expected one for each of sum, length, got sum"),
        ({"weights": {}}, "weights: expected one for each of sum, length, got none"),
        ({"weights": WEIGHTS | {"sum": np.nan}}, "weights: sum: expected a finite number, got nan"),
        ({"weights": WEIGHTS | {"sum": True}}, "weights: sum: expected a finite number, got True"),
        ({"weights": WEIGHTS | {"sum": "1"}}, "weights: sum: expected a finite number, got '1'"),
        ({"weights": dict.fromkeys(WEIGHTS, 0)}, "weights: expected one that is not 0, got only"),
        ({"decides": "form"}, "decides: expected one of sum, length, got 'form'"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        load_rewards(**({"rewards": NAMES, "weights": WEIGHTS} | changes))
    assert "\n" not in str(error.value)


def test_a_part_that_is_no_function():
    with pytest.raises(ValueError, match="parts: a: expected a function, got 3"):
        WeightedParts({"a": 3}, {"a": 1})


def test_the_tasks_own_verifiers_have_names():
    reward = load_rewards({"score": "scorer"}, {"score": 1.0}, own={"scorer": verifiers.length})
    assert reward(PROBLEM, "123") == 3.0
