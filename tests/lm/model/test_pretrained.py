"""Checkpoints in Hugging Face's format: against a NumPy forward pass, and against transformers."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rope_oracle
from flax import nnx

from maxpo.lm.model.config import Llama3Rope, TransformerConfig
from maxpo.lm.model.pretrained import (
    check_pretrained,
    load_config,
    load_pretrained,
    save_pretrained,
)
from maxpo.lm.model.transformer import Transformer

safetensors_numpy = pytest.importorskip("safetensors.numpy")

LLAMA = TransformerConfig(
    vocab_size=11,
    context_length=16,
    hidden=16,
    layers=2,
    heads=4,
    kv_heads=2,
    mlp=24,
    tied_embeddings=False,
    rope_theta=500.0,
    norm_epsilon=1e-5,
)
CONFIGS = {
    "llama": LLAMA,
    # Of the two frequencies of a head, one is divided and the other in between.
    "llama 3.1": dataclasses.replace(LLAMA, rope_scaling=Llama3Rope(4.0, 1.0, 4.0, 8)),
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, tied_embeddings=True),
    # Heads that are wider than their share of the residual stream.
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=6, tied_embeddings=True),
}
# A row without padding, and rows padded on the left.
MASK = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
TOKENS = np.where(MASK, np.random.default_rng(0).integers(0, 11, MASK.shape), 0)


def shuffled(config):
    """A model none of whose parameters is at its initial value: norms and biases count."""
    model = Transformer(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


logits = nnx.jit(lambda model: model(jnp.asarray(TOKENS), jnp.asarray(MASK)))


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request, tmp_path_factory):
    """Architecture, model, its folder and its logits at real tokens."""
    model = shuffled(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    save_pretrained(model, folder)
    return request.param, model, folder, np.asarray(logits(model))[MASK]


def reference_logits(tensors, config, tokens):
    """One sequence without padding, by the published equations, from the tensors as they are."""

    def norm(x, name):
        scaled = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)
        return scaled * tensors[name]

    def project(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def rotated(x):
        """Pairs of coordinates as complex numbers, turned by the position."""
        half = width // 2
        angles = np.outer(np.arange(len(x)), rope_oracle.frequencies(config))
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    width, length = config.head_width, len(tokens)
    states = tensors["model.embed_tokens.weight"][tokens]
    for number in range(config.layers):
        layer = f"model.layers.{number}."
        x = norm(states, layer + "input_layernorm.weight")
        query, key, value = (
            project(x, f"{layer}self_attn.{part}_proj").reshape(length, -1, width) for part in "qkv"
        )
        if config.qk_norm:
            query = norm(query, layer + "self_attn.q_norm.weight")
            key = norm(key, layer + "self_attn.k_norm.weight")
        query, key = rotated(query), rotated(key)
        outputs = []
        for head in range(config.heads):
            shared = head * config.kv_heads // config.heads
            scores = query[:, head] @ key[:, shared].T / np.sqrt(width)
            scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            outputs.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, shared])
        states = states + project(np.concatenate(outputs, axis=1), layer + "self_attn.o_proj")
        x = norm(states, layer + "post_attention_layernorm.weight")
        gate = project(x, layer + "mlp.gate_proj")
        up = project(x, layer + "mlp.up_proj")
        states = states + project(gate / (1 + np.exp(-gate)) * up, layer + "mlp.down_proj")
    unembedding = "model.embed_tokens" if config.tied_embeddings else "lm_head"
    return norm(states, "model.norm.weight") @ tensors[f"{unembedding}.weight"].T


def test_tensors_mean_what_their_names_say(checkpoint):
    name, _, folder, actual = checkpoint
    stored = safetensors_numpy.load_file(folder / "model.safetensors")
    tensors = {name: array.astype(np.float64) for name, array in stored.items()}
    expected = [
        reference_logits(tensors, CONFIGS[name], row[kept])
        for row, kept in zip(TOKENS, MASK, strict=True)
    ]
    np.testing.assert_allclose(actual, np.concatenate(expected), atol=3e-5, rtol=1e-5)


def test_round_trip_is_exact(checkpoint):
    name, model, folder, expected = checkpoint
    loaded = load_pretrained(folder)
    assert loaded.config == CONFIGS[name]
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(loaded, nnx.Param), nnx.state(model, nnx.Param)
    )
    np.testing.assert_array_equal(np.asarray(logits(loaded))[MASK], expected)


def test_agrees_with_transformers_both_ways(checkpoint, tmp_path):
    name, _, folder, expected = checkpoint
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def torch_logits(model):
        with torch.no_grad():
            output = model(
                input_ids=torch.from_numpy(TOKENS),
                attention_mask=torch.from_numpy(MASK.astype(np.int64)),
                position_ids=torch.from_numpy(np.maximum(np.cumsum(MASK, axis=1) - 1, 0)),
            )
        return output.logits.numpy()[MASK]

    ours = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert ours.config.architectures == [type(ours).__name__]
    assert type(ours).__name__.lower() == f"{name.split()[0]}forcausallm"
    np.testing.assert_allclose(torch_logits(ours), expected, atol=3e-5, rtol=1e-5)

    # As transformers writes it by itself: other fields in the config, and several files.
    theirs = transformers.AutoModelForCausalLM.from_config(ours.config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_config(tmp_path) == CONFIGS[name]
    np.testing.assert_allclose(
        np.asarray(logits(load_pretrained(tmp_path)))[MASK],
        torch_logits(theirs),
        atol=3e-5,
        rtol=1e-5,
    )


def test_dtypes(tmp_path):
    model = shuffled(LLAMA)
    save_pretrained(model, tmp_path, dtype="bfloat16")
    stored = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    assert {str(array.dtype) for array in stored.values()} == {"bfloat16"}
    for param_dtype in ("bfloat16", "float32"):
        loaded = load_pretrained(
            tmp_path, dtype="bfloat16", param_dtype=param_dtype, context_length=8, remat=True
        )
        assert loaded.config == dataclasses.replace(
            LLAMA, dtype="bfloat16", param_dtype=param_dtype, context_length=8, remat=True
        )
        for actual, exact in zip(
            jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(model)), strict=True
        ):
            assert actual.dtype == param_dtype
            np.testing.assert_array_equal(
                actual.astype(jnp.float32), exact.astype(jnp.bfloat16).astype(jnp.float32)
            )


@pytest.fixture
def folder(tmp_path):
    save_pretrained(Transformer(LLAMA, rngs=nnx.Rngs(0)), tmp_path)
    return tmp_path


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = safetensors_numpy.load_file(path)
    edit(tensors)
    safetensors_numpy.save_file(tensors, path)


def test_older_and_newer_names_of_the_rotary_base(folder):
    edit_config(folder, rope_theta=77.0)
    assert load_config(folder).rope_theta == 77
    # What is newer wins: transformers writes both when it updates an old file.
    edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 99.0})
    assert load_config(folder).rope_theta == 99


def test_what_a_silent_config_means(folder):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    for name in (
        *("rope_theta", "rms_norm_eps", "num_key_value_heads", "head_dim"),
        *("tie_word_embeddings", "hidden_act"),
    ):
        del fields[name]
    path.write_text(json.dumps(fields))
    expected = dataclasses.replace(LLAMA, kv_heads=4, rope_theta=1e4, norm_epsilon=1e-6)
    assert load_config(folder) == expected
    edit_config(folder, model_type="qwen3")
    assert load_config(folder).head_dim == 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "llama, qwen2, qwen3 in .*config.json, got model_type 'gpt2'"),
        (
            {"rope_scaling": {"type": "linear"}},
            r"positions .*\('default', 'llama3'\), got 'linear'",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"'llama3'\), got 'yarn'"),
        (
            {"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_type": "default"}},
            'rope_parameters.rope_type: expected that of rope_scaling, got "default"',
        ),
        ({"attention_bias": True}, "attention_bias to be False, got True"),
        ({"mlp_bias": True}, "mlp_bias to be False, got True"),
        ({"hidden_act": "gelu"}, "hidden_act to be 'silu', got 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window to be False, got True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "got {'sliding_attention'}"),
        ({"quantization_config": {"bits": 4}}, "quantization_config to be None"),
        ({"hidden_size": None}, "no field 'hidden_size'"),
    ],
)
def test_unsupported_configs_are_refused(fields, message, folder):
    edit_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_context_beyond_the_checkpoints_is_refused(folder):
    assert load_config(folder, context_length=15).context_length == 15
    with pytest.raises(ValueError, match=r"at most 16, .* got 17"):
        load_pretrained(folder, context_length=17)


def test_wrong_tensors_are_named(folder):
    name = "model.layers.1.mlp.up_proj.weight"

    def break_it(tensors):
        del tensors["model.norm.weight"]
        tensors["score.weight"] = np.zeros(3, np.float32)
        tensors[name] = tensors[name].T.copy()
        tensors["lm_head.weight"] = np.zeros((11, 16), np.int8)

    edit_tensors(folder, break_it)
    with pytest.raises(
        ValueError,
        match=r"missing: model\.norm\.weight; not expected: score\.weight; of another shape: "
        rf"{name} \[16, 24\] instead of \[24, 16\]; not floating-point: lm_head\.weight I8",
    ):
        load_pretrained(folder)
    edit_config(folder, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"missing: model\.layers\.2.* and 6 more"):
        load_pretrained(folder)


def test_tensors_that_other_tools_leave_are_ignored(tmp_path):
    save_pretrained(Transformer(CONFIGS["qwen3"], rngs=nnx.Rngs(0)), tmp_path)

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # Tied.
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)

    edit_tensors(tmp_path, add)
    assert load_pretrained(tmp_path).config.tied_embeddings


def test_an_unembedding_of_its_own_is_not_thrown_away(tmp_path):
    save_pretrained(Transformer(CONFIGS["qwen3"], rngs=nnx.Rngs(0)), tmp_path)
    own = np.random.default_rng(0).normal(size=(11, 16)).astype(np.float32)

    def add(matrix):
        def edit(tensors):
            tensors["lm_head.weight"] = matrix(tensors["model.embed_tokens.weight"])

        return edit

    def last_differs(embedding):
        other = embedding.copy()
        other[-1, -1] += 1
        return other

    for matrix in (lambda embedding: own, last_differs):
        edit_tensors(tmp_path, add(matrix))
        with pytest.raises(ValueError, match=r"lm_head\.weight in .* differs from model\.embed"):
            load_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"or false in config\.json"):
            check_pretrained(tmp_path, load_config(tmp_path))
    # In another dtype the same numbers are equal.
    edit_tensors(tmp_path, add(lambda embedding: embedding.astype(np.float64)))
    assert load_pretrained(tmp_path).config.tied_embeddings
    edit_tensors(tmp_path, add(lambda embedding: embedding.T.copy()))
    with pytest.raises(ValueError, match=r"another shape: lm_head\.weight \[16, 11\] instead"):
        load_pretrained(tmp_path)
    # The message's way out.
    edit_tensors(tmp_path, add(lambda embedding: own))
    edit_config(tmp_path, tie_word_embeddings=False)
    model = load_pretrained(tmp_path)
    assert not model.config.tied_embeddings
    np.testing.assert_array_equal(model.unembedding(), own)


def test_an_untied_model_needs_its_unembedding(tmp_path):
    save_pretrained(Transformer(CONFIGS["qwen3"], rngs=nnx.Rngs(0)), tmp_path)
    for tied in (False, ...):  # The default of all three architectures is false.
        path = tmp_path / "config.json"
        fields = json.loads(path.read_text()) | {"tie_word_embeddings": tied}
        path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))
        with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
            load_pretrained(tmp_path)


ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"rope_type": "llama3", **ROPE}},
        {"rope_scaling": {"type": "llama3", **ROPE}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **ROPE}},
    ],
    ids=["older", "oldest", "newer"],
)
def test_names_of_the_scaling_of_llama3(fields, folder):
    edit_config(folder, **fields)
    assert load_config(folder) == dataclasses.replace(LLAMA, rope_scaling=Llama3Rope(8, 1, 4, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": None}, "'llama3': expected factor to be a number of at least 1, got None"),
        ({"factor": 0.5}, "expected factor to be a number of at least 1, got 0.5"),
        ({"factor": float("inf")}, "expected factor to be a number of at least 1, got inf"),
        ({"low_freq_factor": "1"}, "expected low_freq_factor to be a positive number, got '1'"),
        ({"high_freq_factor": 0}, "expected high_freq_factor to be a positive number, got 0"),
        ({"high_freq_factor": 1}, "high_freq_factor to be above low_freq_factor = 1.0, got 1"),
        (
            {"original_max_position_embeddings": 8.0},
            "original_max_position_embeddings to be a positive integer, got 8.0",
        ),
    ],
)
def test_wrong_scaling_of_llama3_is_named(fields, message, folder):
    edit_config(folder, rope_scaling={"rope_type": "llama3", **ROPE, **fields})
    with pytest.raises(ValueError, match=rf"config\.json: rotary positions .*{message}"):
        load_config(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_theta": None}, "rope_theta: expected a number above 0, got null"),
        ({"rope_theta": "1e4"}, 'rope_theta: expected a number above 0, got "1e4"'),
        ({"rope_theta": float("nan")}, "rope_theta: expected a number above 0, got NaN"),
        (
            {"rope_parameters": {"rope_theta": None}},
            "rope_theta: expected a number above 0, got nu",
        ),
        ({"rope_parameters": [1]}, r"rope_parameters: expected an object or null, got \[1\]"),
        ({"rope_scaling": "linear"}, 'rope_scaling: expected an object or null, got "linear"'),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters: expected the same for all layers",
        ),
        ({"rms_norm_eps": None}, "rms_norm_eps: expected a number above 0, got null"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected a number above 0, got 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps: expected a number above 0, got true"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings: expected true or false, got "fal'),
        ({"tie_word_embeddings": None}, "tie_word_embeddings: expected true or false, got null"),
        ({"hidden_size": "16"}, 'hidden_size: expected an integer above 0, got "16"'),
        ({"hidden_size": 16.0}, r"hidden_size: expected an integer above 0, got 16\.0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: expected an integer above 0, got -1"),
        ({"num_attention_heads": True}, "num_attention_heads: expected an integer above 0, got tr"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: expected an integer above 0, got 0"),
        ({"head_dim": "4"}, 'head_dim: expected an integer above 0, got "4"'),
        ({"max_position_embeddings": 1e4}, "max_position_embeddings: expected an integer above"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
        ({"layer_types": "full_attention"}, "layer_types: expected a list or null"),
        ({"layer_types": [{}]}, "layer_types to be set"),
        ({"model_type": ["llama"]}, r"got model_type \['llama'\]"),
    ],
)
def test_fields_that_are_no_numbers_are_named(fields, message, folder):
    edit_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_config(folder)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_null_is_what_follows_from_other_fields(folder, model_type):
    edit_config(
        folder,
        model_type=model_type,
        head_dim=None,
        num_key_value_heads=None,
        rope_scaling=None,
        rope_parameters=None,
        layer_types=None,
        quantization_config=None,
    )
    found = load_config(folder)
    assert (found.heads, found.kv_heads, found.head_dim) == (4, 4, 16 // 4)


def test_shards(folder):
    save_file = safetensors_numpy.save_file
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {name: file for file, held in parts.items() for name in held}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    config = load_config(folder)
    check_pretrained(folder, config)
    # A shard without one of the tensors that the index expects in it.
    save_file({name: tensors[name] for name in names[6:]}, folder / "b.safetensors")
    with pytest.raises(ValueError, match=f"missing: {names[5]}$"):
        check_pretrained(folder, config)
    whole = (folder / "a.safetensors").read_bytes()
    for damaged in (b"", whole[:4], whole[:100], whole[:-1], b"PK" + whole[2:]):
        (folder / "a.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors is not a whole safetensors file"):
            check_pretrained(folder, config)
    for bad in (["a.safetensors"], {"x": 3}, "a"):
        path.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(ValueError, match="weight_map: expected an object of file names"):
            check_pretrained(folder, config)


def test_folders_that_are_no_checkpoints(folder):
    with pytest.raises(ValueError, match=r"expected the folder of a checkpoint, got .*nowhere"):
        load_pretrained(folder / "nowhere")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_pretrained(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors or .*index\.json in .* neither"):
        load_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"lm_head.weight": "model-1.safetensors"}}')
    with pytest.raises(ValueError, match=r"names model-1\.safetensors, which is not in the folder"):
        load_pretrained(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON file"):
        load_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"expected config\.json in"):
        load_pretrained(folder)


def test_what_cannot_be_saved(tmp_path):
    both = Transformer(
        dataclasses.replace(LLAMA, qk_norm=True, attention_bias=True), rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="no supported architecture has"):
        save_pretrained(both, tmp_path / "both")
    with pytest.raises(ValueError, match="'float32' or 'bfloat16', got 'int8'"):
        save_pretrained(Transformer(LLAMA, rngs=nnx.Rngs(0)), tmp_path / "int8", dtype="int8")
    assert not list(tmp_path.iterdir())


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"load_pretrained needs .*pip install 'maxpo\[lm\]'"):
        load_pretrained(tmp_path)
