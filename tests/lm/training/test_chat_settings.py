"""From a checkpoint, its tokenizer and its template to prompts; and rewards of several parts."""

import json

import numpy as np
import pytest
import tiny_checkpoint
from ml_collections import ConfigDict

from maxpo.lm.model.prompts import Completions
from maxpo.lm.tasks.answers import numeric_verifier
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.tasks.weighted import WeightedParts
from maxpo.lm.training import stages
from maxpo.lm.training.settings import make_settings
from maxpo.runs import load_config

MESSAGES = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "1?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "2?"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    for package in ("tokenizers", "safetensors", "jinja2"):
        pytest.importorskip(package)
    return tiny_checkpoint.make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def config(checkpoint, tmp_path):
    for name in ("train", "held_out"):
        write(tmp_path / f"{name}.jsonl", [f"{10**i}+{name[0]}=" for i in range(4)])
    config = load_config("configs/lm.py:jsonl")
    config.task.train_path = str(tmp_path / "train.jsonl")
    config.task.held_out_path = str(tmp_path / "held_out.jsonl")
    config.methods = ("rloo",)
    config.model.pretrained = str(checkpoint)
    config.rl.update(prompts=2, group_size=4, max_new_tokens=8, eval_k=2)
    return config


def write(path, prompts):
    lines = [json.dumps({"question": prompt, "answer": "5"}) for prompt in prompts]
    path.write_text("\n".join(lines))


def prompts_of(encoded, tokenizer):
    """Texts of the tokens themselves, special ones included."""
    return [
        tokenizer._tokenizer.decode(tokens[mask].tolist(), skip_special_tokens=False)
        for tokens, mask in zip(*encoded.prompts, strict=True)
    ]


def as_chat(text, *, system=""):
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{first}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_prompts_are_chats_where_the_checkpoint_has_a_template(config, checkpoint):
    settings = make_settings(config)
    tokenizer = settings.tokenizer
    expected = [as_chat(f"{10**i}+t=") for i in range(4)]
    assert [problem.prompt for problem in settings.train.problems] == expected
    assert prompts_of(settings.train, tokenizer) == expected
    assert prompts_of(settings.held_out, tokenizer)[3] == as_chat("1000+h=")
    # The tokenizer is the checkpoint's: bytes, in which what marks a turn is one token. The
    # template would write a start token if it wanted one.
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.start_ids) == (0, 2, (3,))
    assert settings.train.prompts.tokens[3, -len("assistant\n") - 1] == 1
    assert settings.train.prompts.mask[3].sum() == len("user\n1000+t=\nassistant\n") + 3
    tokens, mask = settings.answers
    assert tokens[0][mask[0]].tolist() == [*tokenizer.encode("5"), 0]
    assert settings.checkpoint == checkpoint
    assert settings.model.vocab_size == 260


@pytest.mark.parametrize("without_template", [True, False])
def test_prompts_are_texts_without_a_template_or_if_asked_for(config, tmp_path, without_template):
    if without_template:
        folder = tiny_checkpoint.make_tiny_checkpoint(tmp_path / "plain", template=None)
        config.model.pretrained = str(folder)
    else:
        config.task.chat = False
    settings = make_settings(config)
    assert settings.train.problems[1].prompt == "10+t="
    # Such texts begin as the tokenizer begins them.
    assert prompts_of(settings.train, settings.tokenizer)[1] == "<s>10+t="
    for name, value in (("system", "Be brief."), ("chat_options", '{"mood": 1}')):
        config.task[name] = value
        with pytest.raises(ValueError, match=rf"task\.{name}: expected none where prompts are no"):
            make_settings(config)
        config.task[name] = ""


def test_chats_without_a_template_are_refused(config, tmp_path):
    config.task.chat = True
    folder = tiny_checkpoint.make_tiny_checkpoint(tmp_path / "plain", template=None)
    config.model.pretrained = str(folder)
    with pytest.raises(ValueError, match=r"expected chat_template\.jinja or .* task\.chat=False"):
        make_settings(config)
    config.model.pretrained = ""
    with pytest.raises(ValueError, match=r"task\.chat: expected False without model\.pretrained"):
        make_settings(config)


def test_what_the_system_says_and_what_else_a_template_reads(config):
    config.task.system = "Be brief."
    config.task.chat_options = '{"mood": "calm"}'
    settings = make_settings(config)
    assert settings.train.problems[0].prompt == "[calm]" + as_chat("1+t=", system="Be brief.")
    config.task.template = "Q: {prompt}"
    config.task.system = ""
    assert make_settings(config).train.problems[0].prompt == "[calm]" + as_chat("Q: 1+t=")


@pytest.mark.parametrize("text", ["{mood", "[1]", "3", "null", '"mood"', "{'mood': 1}"])
def test_chat_options_that_are_no_object(config, text):
    config.task.chat_options = text
    with pytest.raises(ValueError, match=r"^task\.chat_options: expected a JSON object, got") as e:
        make_settings(config)
    assert repr(text) in str(e.value)


def test_conversations_need_a_chat(config, tmp_path):
    write(tmp_path / "held_out.jsonl", [MESSAGES])
    settings = make_settings(config)
    turns = "<|im_start|>assistant\n1<|im_end|>\n"
    expected = as_chat("1?", system="Count.").removesuffix("<|im_start|>assistant\n")
    assert settings.held_out.problems[0].prompt == expected + turns + as_chat("2?")
    config.task.system = "Be brief."
    with pytest.raises(ValueError, match=r"task\.system: expected none for problems that begin"):
        make_settings(config)
    config.task.system = ""
    config.task.chat = False
    with pytest.raises(ValueError, match=r"task\.prompt_field: expected texts .* got messages"):
        make_settings(config)


class Stub:
    """Programs whose policy writes "5" and its end, and "7<|im_start|>5" without one."""

    params = None

    def __init__(self, settings):
        self._tokenizer = settings.tokenizer

    def draw_held_out(self, params, prompts, key):
        five, seven = self._tokenizer.encode("57")
        rows = np.array([[five, 0, 2], [seven, 1, five]] * 2, np.int32)
        tokens = np.tile(rows, (len(prompts.tokens), 1, 1))
        mask = np.tile(np.array([[True, True, False], [True] * 3] * 2), (len(tokens), 1, 1))
        return lambda: Completions(tokens, np.zeros(tokens.shape, np.float32), mask)


def test_the_verifier_sees_how_an_answer_begins(config, tmp_path, monkeypatch):
    config.task.answer_prefix = "so: "
    config.evaluation.update(samples=4, prompts=2)
    settings = make_settings(config)
    assert settings.train.problems[0].prompt == as_chat("1+t=") + "so: "
    assert prompts_of(settings.train, settings.tokenizer)[0].endswith("assistant\nso: ")
    monkeypatch.setattr(stages, "Programs", Stub)
    seen = []

    def score(problem, text):
        seen.append((problem.prompt, text))
        return float(text == "so: 5")

    stages.Stages(settings, RewardFunction(score)).evaluate(tmp_path / "run")
    texts = ["so: 5", "so: 7<|im_start|>5"] * 2
    prompts = [as_chat(f"{10**i}+h=") + "so: " for i in range(4)]
    assert sorted(seen) == sorted((prompt, text) for prompt in prompts for text in texts)
    lines = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])["completions"]
    assert [each["text"] for each in first] == texts
    assert [each["end"] for each in first] == ["ended", "truncated"] * 2


@pytest.mark.parametrize("chat", [True, False])
def test_long_prompts_are_left_out(config, capsys, chat):
    config.task.chat = chat
    # In bytes, one for each of three special tokens of a chat; or one for the start.
    length = len("user\n10+t=\nassistant\n") + 3 if chat else len("10+t=") + 1
    config.task.max_prompt_length = length
    settings = make_settings(config)
    assert settings.train.prompts.tokens.shape == (2, length)
    assert len(settings.held_out.problems) == 2
    printed = capsys.readouterr().err
    for name in ("train", "held-out"):
        assert (
            f"left out 2 of 4 {name} problems, whose prompts have more than task.max_prompt_length "
            f"= {length} tokens"
        ) in printed
    assert settings.model.context_length == length + config.rl.max_new_tokens
    config.task.max_prompt_length = length + 2
    assert len(make_settings(config).train.problems) == 4
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "held-out"])
def test_where_no_prompt_is_left(config, tmp_path, name):
    write(tmp_path / f"{name.replace('-', '_')}.jsonl", ["a prompt that is longer than others"])
    config.task.update(chat=False, max_prompt_length=7)
    with pytest.raises(
        ValueError,
        match=rf"task\.max_prompt_length: expected room for at least one {name} prompt, got 7 tok",
    ):
        make_settings(config)


def test_a_tokenizer_that_is_named_is_taken(config, tmp_path):
    config.task.chat = False
    config.tokenizer = "characters"
    settings = make_settings(config)
    assert settings.tokenizer.vocab_size < 20
    assert settings.model.vocab_size == 260
    config.model.pretrained, config.tokenizer = "", ""
    assert make_settings(config).tokenizer.to_json() == settings.tokenizer.to_json()


def parts_of(**parts):
    return json.dumps(parts)


BRIEF = {"verifier": "lm_verifier:is_even", "weight": 0.25}


def test_a_reward_has_further_parts(config):
    config.task.update(binary=False, parts=parts_of(brief=BRIEF, last={**BRIEF, "weight": 0}))
    verifier = make_settings(config).task.verifier
    assert isinstance(verifier, WeightedParts)
    assert verifier.weights == {"correct": 1.0, "brief": 0.25, "last": 0.0}
    assert verifier.decides == "correct"
    assert verifier.parts["correct"] is numeric_verifier
    config.task.parts = ""
    assert make_settings(config).task.verifier is numeric_verifier
    config.task.parts = "{}"
    assert make_settings(config).task.verifier is numeric_verifier


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{brief", "task.parts: expected a JSON object, got '{brief'"),
        ("[1]", r"task.parts: expected a JSON object, got '\[1\]'"),
        (
            parts_of(brief=1),
            r"task.parts: expected a verifier .* got \{\"brief\": 1\}",
        ),
        (parts_of(brief={"weight": 1}), "task.parts: expected a verifier and a weight for each"),
        (parts_of(brief={**BRIEF, "of": 1}), "task.parts: expected a verifier and a weight for"),
        (parts_of(correct=BRIEF), "for each name but 'correct'"),
        (parts_of(brief={**BRIEF, "verifier": "nowhere:f"}), "rewards: brief: .*nowhere:f"),
        (parts_of(brief={**BRIEF, "verifier": "short"}), "rewards: brief: .*got 'short'"),
        (parts_of(brief={**BRIEF, "verifier": 3}), "task.parts: expected a verifier and a weight"),
        (parts_of(brief={**BRIEF, "weight": "1"}), "weights: brief: expected a finite .* got '1'"),
        ('{"brief": {"verifier": "numeric", "weight": NaN}}', "weights: brief: .* number, got nan"),
        (parts_of(**{"is brief": BRIEF}), "parts: expected names such as .* got 'is brief'"),
    ],
)
def test_parts_that_make_no_sense(config, parts, message):
    config.task.update(binary=False, parts=parts)
    with pytest.raises(ValueError, match=message):
        make_settings(config)


def test_a_binary_reward_has_no_parts(config):
    config.task.parts = parts_of(brief=BRIEF)
    with pytest.raises(ValueError, match=r"task\.parts: expected none for task\.binary=True"):
        make_settings(config)


def test_options_of_reasoning_gym_as_json():
    pytest.importorskip("reasoning_gym")
    config = load_config("configs/lm.py:reasoning")
    config.task.update(dataset="chain_sum", train_size=3, held_out_size=2)
    text = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}'
    config.task.options = text
    settings = make_settings(config)
    for problem in (*settings.train.problems, *settings.held_out.problems):
        assert problem.entry["metadata"]["num_terms"] == 2
    # Once more as a config of Python's has them.
    other = ConfigDict(config.to_dict() | {"task": config.task.to_dict()})
    other.task = ConfigDict({**config.task.to_dict(), "options": json.loads(text)})
    assert make_settings(other).train.problems == settings.train.problems
    config.task.options = '{"max_terms": '
    with pytest.raises(ValueError, match="options: expected a JSON object such as"):
        make_settings(config)
    config.task.options = '{"terms": 2}'
    with pytest.raises(ValueError, match="terms"):
        make_settings(config)
