"""`maxpo.lm.train`: from a policy, problems and a reward to a better policy."""

import json

import jax
import lm_verifier
import numpy as np
import optax
import pytest
from flax import nnx

from maxpo import lm, runs
from maxpo.lm.tasks.weighted import WeightedParts
from maxpo.lm.training import door
from maxpo.lm.training.handover import export
from maxpo.lm.training.named_optimizers import DEFAULT_B2
from maxpo.lm.training.problems import encode
from maxpo.runs import UsageError, load_config, read_metrics

LETTERS = "abcd"
TOKENIZER = lm.CharTokenizer.from_texts([LETTERS + "="])
PROBLEMS = [lm.Problem(prompt=f"{letter}=", answer=letter) for letter in LETTERS]


def right(problem, text):
    return float(text[:1] == problem.answer)


def make_policy():
    policy, _ = lm.new(
        "nano", TOKENIZER, context_length=8, layers=1, hidden=32, heads=2, kv_heads=1, mlp=32
    )
    return policy


SETTINGS = {
    "reward": right,
    "method": "maxpo:k=2",
    "group_size": 8,
    "prompts": 4,
    "steps": 30,
    "max_new_tokens": 2,
    "samples": 32,
    "save_every": 10,
}


def leaves(policy):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(policy))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A policy as it was, and what training made of it."""
    policy = make_policy()
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = lm.train(
        policy, TOKENIZER, PROBLEMS, optimizer=optax.adam(1e-2), workdir=folder, **SETTINGS
    )
    return policy, result


def test_a_policy_gets_better_and_the_one_given_stays(whole):
    policy, result = whole
    before, after = result.curve["before"], result.curve["after"]
    assert before.k == after.k == (1, 2, 4, 8, 16, 32)
    # One of 7 tokens is right at random; 128 samples have a standard error of 0.03.
    assert before.value[0] < 1 / 7 + 5 * 0.031
    assert after.value[0] > 0.6
    # Rewards are 0 or 1: the best reward is whether one is right.
    np.testing.assert_allclose(result.max_curve["after"].value, after.value, atol=1e-6)
    for one, other in zip(leaves(policy), leaves(make_policy()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(np.any(x != y) for x, y in zip(leaves(policy), leaves(result.policy), strict=True))


def test_its_folder_is_that_of_a_run(whole):
    _, result = whole
    assert [row["step"] for row in result.history] == list(range(1, 31))
    assert result.history == read_metrics(result.folder)
    stored = json.loads((result.folder / "config.json").read_text())
    assert stored["reward"].endswith("test_door:right")
    assert stored["rl"]["group_size"] == 8
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["table"][1]["pass@1"] == result.curve["after"].value[0]
    # Which would be the same numbers again.
    assert not any(name.startswith("max@") for name in summary["table"][1])
    assert summary["verified"] == 4 * 32 + 30 * 4 * 8
    for name in ("best_of_k", "learning_curves"):
        assert (result.folder / f"{name}.png").stat().st_size > 5000


def test_interrupted_runs_end_the_same_and_finished_ones_are_read(whole, tmp_path, monkeypatch):
    policy, result = whole
    original, calls = runs.Run.save, []

    def interrupt(run, step, state):
        original(run, step, state)
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    arguments = (policy, TOKENIZER, PROBLEMS)
    settings = {**SETTINGS, "optimizer": optax.adam(1e-2), "workdir": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lm.train(*arguments, **settings)
    resumed = lm.train(*arguments, **settings)
    again = lm.train(*arguments, **settings)
    for found in (resumed, again):
        assert found.history == result.history
        np.testing.assert_array_equal(found.curve["after"].value, result.curve["after"].value)
        for one, other in zip(leaves(found.policy), leaves(result.policy), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(UsageError, match=r"rl\.group_size: 8 -> 16"):
        lm.train(*arguments, **{**settings, "group_size": 16})
    with pytest.raises(UsageError, match=r"digests\.policy"):
        lm.train(result.policy, TOKENIZER, PROBLEMS, **settings)
    with pytest.raises(UsageError, match=r"digests\.optimizer"):
        lm.train(*arguments, **{**settings, "optimizer": optax.adam(1e-3)})

    def other(problem, text):
        return float(text[:1] != problem.answer)

    other.__module__, other.__qualname__ = right.__module__, right.__qualname__
    with pytest.raises(UsageError, match=r"digests\.reward"):
        lm.train(*arguments, **{**settings, "reward": other})


def test_a_reward_of_a_group_sees_all_of_it(tmp_path):
    sizes = []

    def diverse(problem, texts):
        sizes.append(len(texts))
        return [1 / texts.count(text) for text in texts]

    result = lm.train(
        make_policy(),
        TOKENIZER,
        PROBLEMS,
        workdir=tmp_path / "run",
        **{**SETTINGS, "steps": 1, "reward": lm.group_reward(diverse)},
    )
    assert set(sizes) == {8, 32}
    assert 0 < result.max_curve["before"].value[0] <= 1
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["table"][0]["max@1"] == result.max_curve["before"].value[0]
    with pytest.raises(ValueError, match=r"reward: expected 32 numbers .* got 1"):
        lm.train(
            make_policy(),
            TOKENIZER,
            PROBLEMS,
            workdir=tmp_path / "other",
            **{**SETTINGS, "reward": lm.group_reward(lambda problem, texts: [0.0])},
        )


def is_short(problem, text):
    return float(len(text) < 2)


def test_of_a_reward_with_parts_one_decides(tmp_path):
    settings = {
        **SETTINGS,
        "steps": 1,
        "samples": 8,
        "reward": WeightedParts({"right": right, "short": is_short}, {"right": 1, "short": 4}),
        # 3 of 4 at a time: the last one is there twice.
        "held_out": PROBLEMS[:3],
        "workdir": tmp_path / "run",
    }
    results = [lm.train(make_policy(), TOKENIZER, PROBLEMS, **settings) for _ in range(2)]
    for result in results:  # That of the run, and what was read from its folder.
        (line,) = result.history
        assert line["mean_reward"] == pytest.approx(line["reward_right"] + 4 * line["reward_short"])
        summary = json.loads((result.folder / "summary.json").read_text())
        scores, deciding = np.array(summary["scores"]), np.array(summary["deciding"])
        assert scores.shape == deciding.shape == (3, 8)
        assert set(np.unique(scores - deciding)) <= {0.0, 4.0}
        assert set(np.unique(deciding)) <= {0.0, 1.0}
        assert (scores != deciding).any()
        assert result.curve["after"].value[0] == pytest.approx(deciding.mean())
        assert result.max_curve["after"].value[0] == pytest.approx(scores.mean())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["reward"]["weights"] == {"right": 1, "short": 4}
    settings["reward"] = WeightedParts(settings["reward"].parts, {"right": 1, "short": 3})
    with pytest.raises(UsageError, match=r"reward\.weights\.short: 4\.0 -> 3\.0"):
        lm.train(make_policy(), TOKENIZER, PROBLEMS, **settings)


def test_a_reward_that_raises_is_no_reward_and_stops_where_it_always_does(tmp_path, capfd):
    def picky(problem, text):
        if not text:
            raise LookupError("an empty answer")
        return right(problem, text)

    settings = {**SETTINGS, "steps": 2}
    lm.train(
        make_policy(), TOKENIZER, PROBLEMS, workdir=tmp_path / "run", **settings | {"reward": picky}
    )
    assert capfd.readouterr().err.count("LookupError: an empty answer") == 1
    rows = read_metrics(tmp_path / "run")
    assert all(0 < row["failed"] < 1 for row in rows)

    def broken(problem, text):
        raise LookupError("no table of answers")

    def mended(problem, text):
        return right(problem, text)

    mended.__qualname__ = broken.__qualname__
    arguments = (make_policy(), TOKENIZER, PROBLEMS)
    folder = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="before training: the verifier raised on all 128 sam"):
        lm.train(*arguments, workdir=folder, **settings | {"reward": broken})
    # Nothing has come of it, so the folder is free, and no score of the broken one is in it.
    found = lm.train(*arguments, workdir=folder, **settings | {"reward": mended})
    fresh = lm.train(*arguments, workdir=tmp_path / "fresh", **settings | {"reward": mended})
    assert 0 < found.curve["before"].value[0] < 1
    for name, curve in fresh.curve.items():
        np.testing.assert_array_equal(found.curve[name].value, curve.value)


def test_a_reward_and_an_optimizer_by_name(tmp_path):
    policy, problems = make_policy(), [lm.Problem("a=", "5")]
    settings = {**SETTINGS, "steps": 1, "reward": "lm_verifier:is_even", "workers": 1}
    settings |= {"optimizer": "lion", "learning_rate": 0.05, "workdir": tmp_path / "run"}
    result = lm.train(policy, TOKENIZER, problems, **settings)
    assert lm_verifier.__name__ == "lm_verifier"
    assert len(result.history) == 1
    # Lion's steps have one length: the first of five that the rate grows over.
    steps = [
        np.abs(new - old) for old, new in zip(leaves(policy), leaves(result.policy), strict=True)
    ]
    assert max(step.max() for step in steps) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(UsageError, match=r'optimizer: "lion" -> "lion:b2=0.98"'):
        lm.train(policy, TOKENIZER, problems, **settings | {"optimizer": "lion:b2=0.98"})


def test_k_may_adapt_to_each_problem_and_a_finished_run_is_read(tmp_path):
    def train():
        return lm.train(
            make_policy(),
            TOKENIZER,
            PROBLEMS,
            workdir=tmp_path / "run",
            **{**SETTINGS, "method": "maxpo:k=adaptive,k_max=3", "steps": 2},
        )

    found, again = train(), train()
    assert len(found.history) == 2
    for one, other in zip(leaves(found.policy), leaves(again.policy), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "maxpo:k=8"}, "N - 1 = 7"),
        ({"method": "maxpo:k=adaptive"}, "N - 1 = 7 .* got k = 8.0, the k_max of k=adaptive"),
        ({"method": "max_rl"}, "method: expected estimators of graded rewards"),
        (
            {
                "method": "max_rl",
                "binary": True,
                "truncated": "penalty",
                "truncation_penalty": 0.5,
            },
            "method: expected estimators of graded rewards, as truncated=penalty says, got max_rl",
        ),
        ({"log_every": -1}, "log_every: expected at least 0, got -1"),
        ({"patience": 1}, "patience: expected 0 for evaluate_every=0"),
        ({"group_size": 1}, "^group_size: expected at least 2, got 1"),
        ({"group_size": "8"}, "^group_size: expected an integer of at least 2, got '8'"),
        ({"steps": 0}, "^steps: expected at least 1, got 0"),
        ({"steps": 2.5}, "^steps: expected an integer of at least 1, got 2.5"),
        ({"samples": 0}, "^samples: expected at least 1, got 0"),
        ({"seed": -1}, "^seed: expected at least 0, got -1"),
        ({"workers": -1}, "^workers: expected at least 0, got -1"),
        ({"temperature": -1.0}, "^temperature: expected more than 0, got -1"),
        ({"temperature": 0.0}, "^temperature: expected more than 0, got 0"),
        ({"success": float("nan")}, "^success: expected a finite number, got nan"),
        ({"success": "1"}, "^success: expected a number, got '1'"),
        ({"success": 0.0, "binary": True}, "^success: expected more than 0, .*got 0"),
        ({"max_new_tokens": 7}, r"^max_new_tokens: .* context_length = 8 .* got 2 \+ 7"),
        ({"micro_batches": 3}, "^minibatches .* expected a divisor of prompts = 4, got 3"),
        ({"method": None}, "^method: expected text such as 'maxpo:k=4', got None"),
        ({"lora": 16}, "^lora: expected an lm.LoRA or None, got 16"),
        ({"optimizer": optax.adam}, "^optimizer: expected a name or an optimizer such as"),
        ({"optimizer": "adamw", "learning_rate": "1e-4"}, "^learning_rate: .* number of more than"),
        ({"loggers": "tensorboard"}, "^loggers: expected a sequence of names, got 'tensorboard'"),
        ({"los": "clipped_ratio"}, "los: expected an argument of train or one of .*loss"),
        ({"epochs": 2}, "expected clipped_ratio for 2 epochs"),
        ({"learning_rate": 0.1}, "learning_rate: expected none beside an optimizer"),
        ({"method": "rloo:learning_rate=0.1"}, "expected none beside an optimizer"),
        ({"optimizer": "sgd"}, "optimizer: expected one of adamw, .*, got 'sgd'"),
        ({"optimizer": "lion", "b2": 0.9}, "b2: expected the default of 0.95 for .*=lion"),
        ({"held_out": []}, "^held_out: expected at least one, got none"),
        ({"reward": 3}, "reward: expected a function or 'module:function', got 3"),
        ({"held_out": [("1+1=", "2")]}, r"held_out\[0\]: expected an lm.Problem, got \('1\+1='"),
        ({"held_out": [lm.Problem("a=", 2)]}, r"^held_out\[0\]\.answer: expected text, got 2"),
        ({"reward": "nothing"}, "^reward: expected 'exact' or .* or 'module:function', got 'noth"),
        ({"reward": "numeric"}, r"^problems\[0\]\.answer: the numeric verifier expected a number"),
        ({"reward": WeightedParts({"a": right}, {"a": 1}), "binary": True}, "^binary: expected F"),
        ({"workers": 1, "reward": lm.group_reward(len)}, "workers: expected 0"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, changes, message):
    settings = {**SETTINGS, "optimizer": optax.sgd(0.1), **changes}
    with pytest.raises(ValueError, match=message):
        lm.train(make_policy(), TOKENIZER, PROBLEMS, workdir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_policy_or_tokenizer_that_does_not_fit_is_refused(tmp_path):
    more = lm.CharTokenizer.from_texts(["abcdefgh="])
    with pytest.raises(ValueError, match="tokenizer: expected at most the policy's 7 tokens"):
        lm.train(make_policy(), more, PROBLEMS, workdir=tmp_path / "run", **SETTINGS)
    policy = make_policy()
    policy.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"policy: expected no variables but nnx\.Param, got Rng"):
        lm.train(policy, TOKENIZER, PROBLEMS, workdir=tmp_path / "run", **SETTINGS)
    with pytest.raises(ValueError, match="problems: expected at least one, got none"):
        lm.train(make_policy(), TOKENIZER, [], workdir=tmp_path / "run", **SETTINGS)


def test_muon_needs_a_policy_that_names_its_matrices(tmp_path):
    policy = make_policy()
    policy.rules = None
    settings = {**SETTINGS, "optimizer": "muon", "workdir": tmp_path / "run"}
    with pytest.raises(ValueError, match="optimizer: expected a policy for muon"):
        lm.train(policy, TOKENIZER, PROBLEMS, **settings)
    assert not (tmp_path / "run").exists()


def test_defaults_are_those_of_the_config():
    config = load_config("configs/lm.py").rl
    assert (config.optimizer, config.b2) == ("adamw", DEFAULT_B2)
    differ = {name for name, value in door.RL_DEFAULTS.items() if config[name] != value}
    assert differ == {"sampling_batches", "learning_rate"}


def test_its_model_can_be_exported(whole, tmp_path):
    pytest.importorskip("safetensors")
    _, result = whole
    assert export(result.folder, tmp_path / "model") == 30
    policy, tokenizer = lm.load(tmp_path / "model")
    assert all(map(np.array_equal, leaves(policy), leaves(result.policy)))
    assert tokenizer.to_json() == TOKENIZER.to_json()
    export(result.folder, tmp_path / "earlier", step=30)
    with pytest.raises(UsageError, match="checkpoint of step 25, got those of steps 30"):
        export(result.folder, tmp_path / "never", step=25)


EVALUATION = {"reward": right, "samples": 32, "max_new_tokens": 2, "prompts": 4}


def test_evaluation_alone_is_what_training_judges_by(whole):
    policy, trained = whole
    found = lm.evaluate(policy, TOKENIZER, PROBLEMS, **EVALUATION)
    for of, before in (
        (found.curve, trained.curve["before"]),
        (found.max_curve, trained.max_curve["before"]),
    ):
        assert of.k == before.k
        np.testing.assert_array_equal(of.value, before.value)
        np.testing.assert_array_equal(of.error, before.error)


def test_evaluated_texts_have_their_rewards():
    policy = make_policy()
    found = lm.evaluate(policy, TOKENIZER, PROBLEMS, **EVALUATION)
    assert found.rewards.shape == (4, 32)
    assert [len(group) for group in found.texts] == [32] * 4
    for problem, texts, rewards in zip(PROBLEMS, found.texts, found.rewards, strict=True):
        assert [right(problem, text) for text in texts] == rewards.tolist()
    assert 0 < found.rewards.sum() < found.rewards.size
    assert found.curve.value[0] == pytest.approx(found.rewards.mean(), abs=1e-6)
    other = lm.evaluate(policy, TOKENIZER, PROBLEMS, **EVALUATION, seed=1)
    assert other.texts != found.texts


def test_in_an_evaluation_a_reward_that_raises_fails_its_sample(capsys):
    def fails_on_b(problem, text):
        if problem.answer == "b":
            raise RuntimeError("no b")
        return right(problem, text)

    settings = {**EVALUATION, "reward": fails_on_b}
    found = lm.evaluate(make_policy(), TOKENIZER, PROBLEMS, **settings)
    assert "RuntimeError: no b" in capsys.readouterr().err
    assert np.isnan(found.rewards).all(axis=1).tolist() == [letter == "b" for letter in LETTERS]
    # Wrong for pass@k, and no reward at all for max@k.
    assert (found.curve.problems, found.max_curve.problems) == (4, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"problems": []}, "problems: expected at least one, got none"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"prompts": 0}, "prompts: expected at least 1, got 0"),
        ({"reward": 3}, "reward: expected a function or 'module:function', got 3"),
    ],
)
def test_mistakes_of_an_evaluation_are_named_before_any_work(wrong, message):
    arguments = {"problems": PROBLEMS, **EVALUATION, **wrong}
    with pytest.raises(ValueError, match=message):
        lm.evaluate(make_policy(), TOKENIZER, **arguments)


@pytest.mark.parametrize(
    ("more", "widths"),
    [({}, 2), ({"zero_variance_groups": "oversample", "oversampling": 2}, 1)],
)
def test_no_problem_comes_twice_in_a_step_that_draws_others(monkeypatch, tmp_path, more, widths):
    """Three prompts of a width are enough for steps of 2, and not for steps of up to 4."""
    found = []

    def stop(*arguments, **options):
        found.append(encode(*arguments, **options)[0])
        raise StopIteration

    monkeypatch.setattr(door, "encode", stop)
    problems = [lm.Problem(letter * size, "a") for size in (1, 60) for letter in "abc"]
    settings = SETTINGS | {"prompts": 2, "workdir": tmp_path / "run"} | more
    with pytest.raises(StopIteration):
        lm.train(make_policy(), TOKENIZER, problems, optimizer="adamw", **settings)
    assert len(set(found[0].buckets)) == widths
