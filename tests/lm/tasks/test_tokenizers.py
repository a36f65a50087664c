"""Tokenizers and padding."""

import json
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from maxpo.lm.tasks.tokenizers import CharTokenizer, encode_prompt, end_ids, load_tokenizer, pad

TEXTS = ["1 + 2 = 3", "12 / 4 = 3", "the sum of 1 and 2", "¿cuánto es 2+2?"]


@pytest.fixture(scope="module")
def characters():
    return CharTokenizer.from_texts(TEXTS)


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_characters_come_back(characters, text):
    ids = characters.encode(text)
    assert len(ids) == len(text)
    assert characters.decode(ids) == text


@hypothesis.given(strategies.text())
def test_every_text_comes_back(text):
    tokenizer = CharTokenizer.from_texts([text, "a"])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert CharTokenizer.from_json(tokenizer.to_json()).encode(text) == tokenizer.encode(text)


def test_ids_are_below_the_vocabulary_and_not_special(characters):
    ids = {i for text in TEXTS for i in characters.encode(text)}
    assert ids == set(range(characters.vocab_size)) - {characters.pad_id, characters.eos_id}


def test_same_characters_same_tokenizer():
    assert CharTokenizer.from_texts(["ba", "c"]).alphabet == "abc"


def test_decode_stops_at_the_end_and_drops_padding(characters):
    ids = np.array([0, 0, *characters.encode("1+2"), 0, 1, 5, 5], np.int32)
    assert characters.decode(ids) == "1+2"


def test_what_padding_parts_does_not_grow_together(characters):
    four, two = characters.encode("4"), characters.encode("2")
    assert characters.decode([*four, 0, *two]) == "4\N{REPLACEMENT CHARACTER}2"


def test_unknown_character(characters):
    with pytest.raises(ValueError, match=r"'z' is not in the alphabet .* occurs in '1z'"):
        characters.encode("1z")


def test_ids_beyond_the_vocabulary(characters):
    """Models have them that fill their vocabulary up to a round number."""
    first = characters.alphabet[0]
    text = characters.decode([2, characters.vocab_size, 2])
    assert text == f"{first}\N{REPLACEMENT CHARACTER}{first}"
    with pytest.raises(ValueError, match="ids: expected none below 0, got -1"):
        characters.decode([2, -1])


@pytest.mark.parametrize(("alphabet", "found"), [("", "no character"), ("abca", "'a' more than")])
def test_bad_alphabet(alphabet, found):
    with pytest.raises(ValueError, match=f"each of its characters once, got {found}"):
        CharTokenizer(alphabet)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "words", "alphabet": "ab"}'])
def test_json_of_something_else(text):
    with pytest.raises(ValueError, match="expected a CharTokenizer's JSON"):
        CharTokenizer.from_json(text)


def test_a_tokenizer_configuration_that_is_none(tmp_path):
    save(tmp_path, ["</s>"])
    for content in (b"[]", "{}".encode("utf-16")):
        (tmp_path / "tokenizer_config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
            load_tokenizer(tmp_path)


def test_json_tells_tokenizers_apart(tmp_path):
    first = load_tokenizer(save(tmp_path, ["</s>", "<pad>"])).to_json()
    assert first == load_tokenizer(tmp_path).to_json()
    assert first != load_tokenizer(tmp_path, pad_token="</s>").to_json()
    assert first != load_tokenizer(save(tmp_path, ["</s>", "<pad>", "<other>"])).to_json()


@pytest.mark.parametrize(
    ("side", "rows"), [("left", [[0, 0, 7], [0, 0, 0]]), ("right", [[7, 0, 0], [0, 0, 0]])]
)
def test_pad(side, rows):
    tokens, mask = pad([[7], []], length=3, pad_id=0, side=side)
    assert tokens.tolist() == rows
    assert mask.tolist() == [[token == 7 for token in row] for row in rows]
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)


def test_pad_a_real_token_that_looks_like_padding():
    tokens, mask = pad([[9, 7]], length=3, pad_id=9)
    assert tokens.tolist() == [[9, 9, 7]]
    assert mask.tolist() == [[False, True, True]]


def test_pad_nothing():
    tokens, mask = pad([], length=3, pad_id=0)
    assert tokens.shape == mask.shape == (0, 3)


def test_pad_too_long():
    with pytest.raises(ValueError, match="sequence 1 has 4 tokens, more than length=3"):
        pad([[1], [1, 2, 3, 4]], length=3, pad_id=0)


def test_pad_unknown_side():
    with pytest.raises(ValueError, match="side: expected 'left' or 'right', got 'middle'"):
        pad([], length=3, pad_id=0, side="middle")


def save(folder, special, *, config=None, **settings):
    """A byte-level tokenizer of the texts, as Hugging Face stores it."""
    hugging_face = pytest.importorskip("tokenizers")
    tokenizer = hugging_face.Tokenizer(hugging_face.models.BPE())
    tokenizer.pre_tokenizer = hugging_face.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hugging_face.decoders.ByteLevel()
    trainer = hugging_face.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=hugging_face.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if settings.get("padding"):
        tokenizer.enable_padding(length=50)
        tokenizer.enable_truncation(2)
    if settings.get("begin"):
        tokenizer.post_processor = hugging_face.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 0)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_hugging_face_texts_come_back(tmp_path):
    tokenizer = load_tokenizer(save(tmp_path, ["</s>", "<pad>"]) / "tokenizer.json")
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 1)
    for text in [*TEXTS, "", " new words: ñ"]:
        ids = tokenizer.encode(text)
        assert max(ids, default=0) < tokenizer.vocab_size
        assert tokenizer.decode([1, *ids, 0, *ids]) == text
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])


def test_hugging_face_adds_no_token_and_cuts_nothing(tmp_path):
    save(tmp_path, ["</s>", "<s>"], begin=True, padding=True)
    ids = load_tokenizer(tmp_path).encode(TEXTS[2])
    assert not {0, 1} & set(ids)
    assert 2 < len(ids) < 50


def test_special_tokens_stay_apart_from_the_text(tmp_path):
    """What a model writes on two sides of one is no number that it has written."""
    tokenizer = load_tokenizer(save(tmp_path, ["</s>", "<pad>", "<|eom_id|>"]))
    four, two = tokenizer.encode("4"), tokenizer.encode("2")
    assert tokenizer.decode([1, *four, 2, *two, 1, 0, *two]) == "4<|eom_id|>2"
    assert tokenizer.decode([*four, 1, *two]) == "4<pad>2"


@pytest.mark.parametrize(
    ("ends", "expected"), [(None, (0,)), (2, (0, 2)), ([3, 0, 2], (0, 3, 2)), ([], (0,))]
)
def test_all_end_tokens_of_the_generation_config(tmp_path, ends, expected):
    save(tmp_path, ["</s>", "<pad>", "<a>", "<b>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = load_tokenizer(tmp_path)
    assert end_ids(tokenizer) == expected
    text = tokenizer.encode("12")
    assert tokenizer.decode([*text, expected[-1], *text]) == "12"


@pytest.mark.parametrize("ends", [[True], ["</s>"], 100_000, {"a": 1}])
def test_end_tokens_that_are_none(tmp_path, ends):
    save(tmp_path, ["</s>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ValueError, match="eos_token_id: expected ids of the vocabulary, got"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("begin", "config", "start"),
    [
        (False, None, []),
        (True, None, [1]),
        (True, {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>"}, []),
        (False, {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}, [1]),
        (False, {"add_bos_token": False, "eos_token": "</s>"}, []),
    ],
)
def test_prompts_start_as_the_tokenizer_starts_texts(tmp_path, begin, config, start):
    tokenizer = load_tokenizer(save(tmp_path, ["</s>", "<s>"], begin=begin, config=config))
    text = tokenizer.encode("1 + 2")
    assert encode_prompt(tokenizer, "1 + 2") == [*start, *text]
    # A chat's template writes it itself.
    assert encode_prompt(tokenizer, "<s>1 + 2") == [1, *text]


def test_a_character_tokenizer_in_a_folder(tmp_path, characters):
    (tmp_path / "tokenizer.json").write_text(characters.to_json(), encoding="utf-8")
    found = load_tokenizer(tmp_path)
    assert found.encode(TEXTS[0]) == characters.encode(TEXTS[0])
    assert encode_prompt(found, TEXTS[0]) == found.encode(TEXTS[0])
    assert end_ids(found) == (1,)


def test_hugging_face_vocabulary_with_a_gap(tmp_path):
    save(tmp_path, ["</s>"])
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    added = content["added_tokens"][0] | {"id": 1000, "content": "<extra>"}
    content["added_tokens"].append(added)
    content["model"]["vocab"]["<extra>"] = 1000
    file.write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).vocab_size == 1001


@pytest.mark.parametrize(
    ("special", "config", "given", "eos", "pad"),
    [
        (["<pad>", "</s>"], None, {}, 1, 0),
        (["<|endoftext|>"], None, {}, 0, 0),
        (["<x>", "<|im_end|>", "[PAD]"], None, {}, 1, 2),
        (["</s>", "<eos>"], None, {"eos_token": "<eos>"}, 1, 1),
        (["</s>", "<eos>"], {"eos_token": "<eos>", "pad_token": None}, {}, 1, 1),
        (["</s>", "<x>"], {"eos_token": {"content": "<x>"}, "pad_token": "</s>"}, {}, 1, 0),
        (["</s>", "<x>"], {"eos_token": "<x>"}, {"eos_token": "</s>", "pad_token": "<x>"}, 0, 1),
    ],
)
def test_hugging_face_special_tokens(tmp_path, special, config, given, eos, pad):
    tokenizer = load_tokenizer(save(tmp_path, special, config=config), **given)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (eos, pad)


@pytest.mark.parametrize(
    ("special", "given", "message"),
    [
        (["<x>"], {}, r"ends a completion is not clear: .* found \[\]; give eos_token"),
        (["</s>", "<eos>"], {}, r"not clear: .* found \['</s>', '<eos>'\]; give eos_token"),
        (["</s>"], {"eos_token": "<y>"}, "eos_token '<y>' is not in the vocabulary"),
        (["</s>"], {"pad_token": "<y>"}, "pad_token '<y>' is not in the vocabulary"),
    ],
)
def test_hugging_face_unclear_special_tokens(tmp_path, special, given, message):
    save(tmp_path, special)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path, **given)


def test_hugging_face_file_is_missing(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"no tokenizer at .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_hugging_face_file_is_something_else(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no Hugging Face tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'maxpo\[lm\]'"):
        load_tokenizer(tmp_path)
