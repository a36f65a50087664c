"""Every mistake in a config is found before the first step, and says what was expected."""

import builtins
import json

import numpy as np
import pytest

from maxpo.lm.model import pretrained
from maxpo.lm.training.settings import digests, make_settings
from maxpo.runs import load_config


@pytest.fixture
def config(tmp_path):
    for name in ("train", "held_out"):
        lines = [json.dumps({"question": f"{i}+{name[0]}=", "answer": str(i)}) for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    config = load_config("configs/lm.py:jsonl")
    config.task.train_path = str(tmp_path / "train.jsonl")
    config.task.held_out_path = str(tmp_path / "held_out.jsonl")
    config.methods = ("rloo", "maxpo:k=2")
    config.rl.update(prompts=4, group_size=4, max_new_tokens=3, eval_k=2)
    return config


def test_problems_become_padded_prompts_and_answers_with_an_end(config):
    settings = make_settings(config)
    tokenizer = settings.tokenizer
    assert settings.train.prompts.tokens.shape == (12, 5)
    assert settings.held_out.prompts.tokens.shape == (12, 5)
    taken = settings.train.take(np.array([11, 3]))
    assert [problem.prompt for problem in taken.problems] == ["11+t=", "3+t="]
    assert tokenizer.decode(taken.prompts.tokens[1]) == "3+t="
    assert taken.prompts.mask.tolist() == [[True] * 5, [False] + [True] * 4]
    tokens, mask = settings.answers
    assert [tokenizer.decode(row) for row in tokens] == [str(i) for i in range(12)]
    assert all(row[kept][-1] == tokenizer.eos_id for row, kept in zip(tokens, mask, strict=True))
    assert settings.model.vocab_size == tokenizer.vocab_size
    assert settings.model.context_length == 5 + 3


@pytest.mark.parametrize("answer", ["5", "= 5"])
def test_what_is_learned_after_a_prefix_is_the_rest_of_the_answer(config, tmp_path, answer):
    problem = json.dumps({"question": "2+3", "answer": answer})
    (tmp_path / "train.jsonl").write_text(problem)
    config.task.answer_prefix = "= "
    settings = make_settings(config)
    tokens, mask = settings.answers
    learned = settings.tokenizer.decode(tokens[0][mask[0]])
    assert config.task.answer_prefix + learned == "= 5"


def test_the_exact_verifier_needs_answers_that_begin_with_the_prefix(config):
    config.task.update(verifier="exact", answer_prefix="= ")
    with pytest.raises(
        ValueError, match=r"task.answer_prefix: expected answers that begin with '= ', .* got '0'"
    ):
        make_settings(config)


def test_what_judges_needs_nothing_of_training(config):
    config.evaluation.samples = 1
    assert make_settings(config, trains=False).config.evaluation.samples == 1
    with pytest.raises(ValueError, match="eval_k: expected one of the k that are evaluated"):
        make_settings(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("maxpo:k=4",)}, r"'maxpo:k=4' with group_size = 4: .*N - 1 = 3.*got k = 4"),
        ({"methods": ("mxpo",)}, "expected one of the estimators"),
        ({"methods": ()}, "methods: expected at least one"),
        ({"model.context_length": 7}, r"expected at least 8, for the 5 tokens of prompt number 10"),
        ({"model.vocab_size": 5}, r"at least the 16 tokens of the tokenizer, got 5"),
        ({"model.size": "huge"}, "expected size to be one of"),
        ({"model.pretrained": "nowhere"}, "model.pretrained: expected the folder of a .*nowhere"),
        ({"rl.max_new_tokens": 2}, r"rl.max_new_tokens: expected at least 3, for the answer '10'"),
        ({"rl.steps": 0}, r"rl.steps: expected at least 1, got 0"),
        ({"rl.temperature": 0.0}, r"rl.temperature: expected more than 0, got 0.0"),
        ({"rl.learning_rate": float("nan")}, r"rl.learning_rate: expected more than 0, got nan"),
        ({"rl.sampling_batches": 3}, r"expected a divisor of rl.prompts = 4, got 3"),
        ({"rl.micro_batches": 3}, r"micro_batches: expected a divisor of rl.prompts = 4, got 3"),
        ({"rl.eval_k": 8}, r"expected at most rl.group_size = 4, got 8"),
        ({"rl.loss": "ppo"}, r"expected one of score_function, clipped_ratio; got 'ppo'"),
        ({"rl.epochs": 2}, r"expected clipped_ratio for 2 epochs of 1 minibatches"),
        (
            {"rl.importance_level": "sequence", "rl.loss_aggregation": "token"},
            "expected constant or sequence",
        ),
        ({"rl.length": 2.0, "rl.loss_aggregation": "token"}, "rl.length: expected 1"),
        ({"rl.kl_coefficient": 0.1, "rl.kl_estimator": "k1"}, "expected k2 or k3"),
        ({"rl.zero_variance_groups": "oversample"}, "expected at least 2 to oversample, got 1"),
        ({"rl.clip_low": 1.5}, "0 <= clip_low <= 1"),
        ({"rl.clip_dual": 1.0}, "rl.clip_dual: expected a ratio above 1, or 0 for none, got 1.0"),
        ({"rl.clip_dual": -3.0}, "rl.clip_dual: expected a ratio above 1, or 0 for none, got -3.0"),
        ({"rl.clip_dual": float("nan")}, "rl.clip_dual: expected a finite number, got nan"),
        ({"rl.clip_dual": 3.0}, "rl.clip_dual: expected 0 for rl.loss=score_function"),
        (
            {"task.binary": False, "methods": ("rloo", "max_rl")},
            "methods: expected estimators of graded rewards, as task.binary says, got max_rl,",
        ),
        (
            {"task.binary": False, "methods": ("pass_at_k_training:k=2->1,learning_rate=1e-4",)},
            "as task.binary says, got pass_at_k_training, which needs rewards of 0 or 1",
        ),
        (
            {
                "methods": ("max_rl",),
                "rl.truncated": "penalty",
                "rl.truncation_penalty": 0.5,
            },
            "methods: expected estimators of graded rewards, as rl.truncated=penalty says, got max",
        ),
        ({"rl.truncated": "drop"}, "expected one of keep, mask, penalty; got 'drop'"),
        ({"rl.truncated": "penalty"}, "rl.truncation_penalty: expected more than 0 for .*=penalty"),
        ({"rl.truncation_penalty": 0.5}, "expected 0 for rl.truncated=keep, got 0.5"),
        ({"rl.truncation_penalty": -0.5}, "rl.truncation_penalty: expected at least 0, got -0.5"),
        ({"evaluation.every": -1}, "evaluation.every: expected at least 0, got -1"),
        ({"evaluation.patience": 2}, "evaluation.patience: expected 0 for evaluation.every=0"),
        ({"log.every": -1}, "log.every: expected at least 0, got -1"),
        ({"log.groups": 0}, "log.groups: expected at least 1, got 0"),
        ({"model.export": "float16"}, "model.export: expected one of float32, .*; got 'float16'"),
        ({"diagnostics.gradient_variance": -1}, "gradient_variance: expected at least 0, got -1"),
        ({"diagnostics.prompts": 1}, "diagnostics.prompts: expected at least 2, got 1"),
        (
            {"diagnostics.gradient_variance": 5, "methods": ("rloo", "maxpo:k=1")},
            "gradient_variance: expected 0 where no method has a number above 1 as k, got 5",
        ),
        ({"diagnostics.gradient_variance": 5}, "at most rl.prompts = 4, got 8"),
        (
            {
                "diagnostics.gradient_variance": 5,
                "diagnostics.prompts": 3,
                "rl.sampling_batches": 1,
            },
            r"a multiple of rl.prompts / rl.sampling_batches = 4 groups, got 3 prompts",
        ),
        ({"rl.failures": "retry"}, "expected one of zero, mask; got 'retry'"),
        ({"task.kind": "web"}, "task.kind: expected one of reasoning, jsonl; got 'web'"),
        ({"task.success": float("inf")}, "expected a finite score, got inf"),
        ({"task.success": float("nan")}, "expected a finite score, got nan"),
        ({"task.success": 0.0}, r"more than 0, the score of a wrong answer, for .*=numeric; got 0"),
        ({"task.success": -0.5, "task.binary": False}, r"for task.verifier=numeric; got -0\.5"),
        ({"task.success": 0.0, "task.verifier": "lm_verifier:unreliable"}, "binary=True; got 0"),
        ({"task.success": 1.5}, r"expected at most 1, the largest score of .*=numeric, got 1\.5"),
        ({"sft.log_every": 0}, "sft.log_every: expected at least 1, got 0"),
        ({"sft.b2": 1.0}, "sft.b2: expected less than 1, got 1.0"),
        ({"sft.optimizer": "sgd"}, "sft.optimizer: expected one of adamw, .*, got 'sgd'"),
        ({"rl.optimizer": "lion", "rl.b2": 0.9}, "rl.b2: expected the default of 0.95 for .*=lion"),
        ({"rl.b2": 1.5}, "rl.b2: expected less than 1, got 1.5"),
        ({"sft.weight_decay": -0.1}, "sft.weight_decay: expected at least 0"),
        ({"rl.learning_rate": float("inf")}, "rl.learning_rate: expected more than 0, got inf"),
        ({"rl.clip_high": float("nan")}, "rl.clip_high: expected a finite number, got nan"),
        ({"model.vocab_size": -1}, "model.vocab_size: expected at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"task.train_path": ""}, "task.train_path: expected a file of problems, got none"),
        ({"task.verifier": "nowhere:f"}, "'nowhere:f' cannot be imported"),
        ({"tokenizer": "nowhere.json"}, "no tokenizer at nowhere.json"),
        ({"evaluation.samples": 0}, "evaluation.samples: expected at least 1, got 0"),
        ({"evaluation.samples": 1}, r"one of the k that are evaluated, \(1,\) for .* = 1, got 2"),
        ({"rl.eval_k": 3}, r"evaluated, \(1, 2, 4, 8, 16, 32\) for .* = 32, got 3"),
        ({"verification.time_limit": 0.0}, "verification.time_limit: expected more than 0"),
        ({"verification.memory_limit": 0.0}, "verification.memory_limit: expected more than 0"),
        ({"verification.memory_limit": float("inf")}, "limit: expected more than 0, got inf"),
    ],
)
def test_a_mistake_is_named(config, changes, message):
    for name, value in changes.items():
        part = config
        *path, field = name.split(".")
        for each in path:
            part = part[each]
        part[field] = value
    with pytest.raises(ValueError, match=message):
        make_settings(config)


def test_estimators_of_binary_rewards_are_for_binary_tasks(config):
    config.methods = ("max_rl", "pass_at_k_training:k=2")
    assert len(make_settings(config).methods) == 2


def test_a_verifier_of_ones_own_may_score_below_0(config):
    config.task.update(verifier="lm_verifier:unreliable", binary=False, success=-0.5)
    settings = make_settings(config)
    scores = np.array([-0.6, -0.5, -0.1, 0.0], np.float32)
    assert settings.grading.correct(scores).tolist() == [False, True, True, True]


def test_a_gradient_need_not_be_clipped(config):
    config.rl.max_gradient_norm = config.sft.max_gradient_norm = float("inf")
    make_settings(config)


def test_empty_and_malformed_files_are_named(config, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match=r"train\.jsonl is empty"):
        make_settings(config)
    path.write_text('{"question": "1", "answer": "1"}\n{"question"\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:2"):
        make_settings(config)


def test_fine_tuning_needs_answers(config, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "1+1=", "answer": ""}\n')
    config.task.verifier = "lm_verifier:unreliable"
    with pytest.raises(ValueError, match=r"got none for number 0, '1\+1='; set sft.steps=0"):
        make_settings(config)
    config.sft.steps = 0
    assert make_settings(config).answers is None


def test_a_missing_extra_is_named(monkeypatch):
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name.startswith("reasoning_gym"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'maxpo\[lm\]'"):
        make_settings(load_config("configs/lm.py:quick"))


@pytest.mark.parametrize("none", ["", "None"])
def test_answers_that_are_not_there(config, none):
    config.task.answer_field = none
    with pytest.raises(ValueError, match="the numeric verifier needs answer_field, got None"):
        make_settings(config)
    config.task.verifier = "lm_verifier:unreliable"
    config.sft.steps = 0
    assert {problem.answer for problem in make_settings(config).train.problems} == {""}


def test_held_out_problems_that_are_trained_on_are_counted(config, tmp_path, capsys):
    settings = make_settings(config)
    assert "warning" not in capsys.readouterr().err
    assert digests(settings)["held_out"].startswith("12 problems, 0 of them in train, sha256:")
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    with (tmp_path / "held_out.jsonl").open("a") as file:
        file.write("\n" + "\n".join(lines[:3]))
    settings = make_settings(config)
    assert "warning: 3 of the 15 held-out problems" in capsys.readouterr().err
    assert digests(settings)["held_out"].startswith("15 problems, 3 of them in train, sha256:")
    config.task.held_out_path = config.task.train_path
    make_settings(config)
    assert "warning: 12 of the 12 held-out problems" in capsys.readouterr().err


def test_digests_tell_what_the_config_only_names(config, tmp_path):
    before = digests(make_settings(config))
    assert before == digests(make_settings(config))
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text().replace('"answer": "11"', '"answer": "99"'))
    after = digests(make_settings(config))
    assert {name for name in before if before[name] != after[name]} == {"train"}
    path.write_text(path.read_text().replace("t=", "\N{GREEK SMALL LETTER TAU}="))
    after = digests(make_settings(config))
    assert {name for name in before if before[name] != after[name]} == {"train", "tokenizer"}


def test_a_tokenizer_larger_than_the_checkpoint_names_what_can_be_changed(
    config, tmp_path, monkeypatch
):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    fields = {
        "model_type": "llama",
        "vocab_size": 5,
        "max_position_embeddings": 64,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    config.model.pretrained, config.tokenizer = str(folder), "characters"
    message = "tokenizer: expected at most the 5 tokens of the checkpoint .*tokenizer.json, got"
    with pytest.raises(ValueError, match=message) as error:
        make_settings(config)
    assert "vocab_size" not in str(error.value)
    (folder / "config.json").write_text(json.dumps({**fields, "vocab_size": 64}))
    monkeypatch.setattr(pretrained, "check_pretrained", lambda *_: None)  # There are no weights.
    before = digests(make_settings(config))
    (folder / "config.json").write_text(json.dumps({**fields, "vocab_size": 128}))
    after = digests(make_settings(config))
    assert {name for name in before if before[name] != after[name]} == {"pretrained"}
