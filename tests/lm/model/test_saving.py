"""Checkpoints that are written: shards, more fields, and saves that fail or are killed."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

CONFIG = TransformerConfig(
    vocab_size=11,
    context_length=16,
    hidden=8,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=12,
    rope_scaling=Llama3Rope(4.0, 1.0, 4.0, 8),
)
# Bytes of a file: the largest tensor, of 12 x 8 numbers, fits.
SMALL = 400
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def models():
    """Two models of the same shape."""
    return [Transformer(CONFIG, rngs=nnx.Rngs(seed)) for seed in (0, 1)]


def weight_files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "config.json")


def is_model(folder, model):
    """Whether what is loaded is this model, bit for bit."""
    same = jax.tree.map(
        np.array_equal,
        nnx.state(load_pretrained(folder), nnx.Param),
        nnx.state(model, nnx.Param),
    )
    return all(jax.tree.leaves(same))


def test_shards_hold_every_tensor_once(models, tmp_path):
    save_pretrained(models[0], tmp_path / "single")
    assert weight_files(tmp_path / "single") == ["model.safetensors"]
    whole = safetensors_numpy.load_file(tmp_path / "single" / "model.safetensors")

    folder = tmp_path / "shards"
    save_pretrained(models[0], folder, max_shard_bytes=SMALL)
    *shards, index = weight_files(folder)
    count = len(shards)
    assert count > 2
    assert index == INDEX
    assert shards == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    content = json.loads((folder / INDEX).read_text())
    assert content["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    found = {}
    for shard in shards:
        tensors = safetensors_numpy.load_file(folder / shard)
        assert sum(array.nbytes for array in tensors.values()) <= SMALL
        assert not tensors.keys() & found.keys()
        assert {content["weight_map"][name] for name in tensors} == {shard}
        found |= tensors
    assert found.keys() == whole.keys() == content["weight_map"].keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, whole[name])
    assert is_model(folder, models[0])


def test_what_is_larger_than_a_shard_gets_one_of_its_own(models, tmp_path):
    save_pretrained(models[0], tmp_path, max_shard_bytes=1, dtype="bfloat16")
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert len(weight_files(tmp_path)) == len(weight_map) + 1
    check_pretrained(tmp_path, load_config(tmp_path))


def test_transformers_reads_shards(models, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ours = models[0]
    extra = {"max_position_embeddings": 64, "eos_token_id": [3, 4], "pad_token_id": 5}
    save_pretrained(ours, tmp_path, max_shard_bytes=SMALL, extra=extra)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name: getattr(theirs.config, name) for name in extra} == extra
    tokens = np.random.default_rng(0).integers(0, 11, (2, 16))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens)).logits.numpy()
    actual = nnx.jit(lambda model: model(jnp.asarray(tokens), jnp.ones((2, 16), bool)))(ours)
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(SMALL, SMALL * 2), (SMALL, 10**9), (10**9, SMALL)])
def test_no_file_of_an_earlier_save_remains(models, tmp_path, before, after):
    save_pretrained(models[0], tmp_path, max_shard_bytes=before)
    (tmp_path / "tokenizer.json").write_text("{}")  # Not ours.
    (tmp_path / "model-notes.safetensors").write_text("")
    save_pretrained(models[1], tmp_path, max_shard_bytes=after)
    save_pretrained(models[1], tmp_path / "afresh", max_shard_bytes=after)
    expected = weight_files(tmp_path / "afresh")
    assert weight_files(tmp_path) == sorted(
        ["afresh", "tokenizer.json", "model-notes.safetensors", *expected]
    )
    assert is_model(tmp_path, models[1])


class Killed(BaseException):
    """Stands for a signal: nothing but `finally` sees it, and what that does fails as well."""


def kill_after(monkeypatch, changes):
    """Lets this many changes of the folder happen, and no more."""
    left = [changes]

    def limited(function):
        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments, **options)

        return call

    of_paths = [(Path, name) for name in ("open", "replace", "unlink", "mkdir")]
    for owner, name in [*of_paths, (shutil, "rmtree")]:
        monkeypatch.setattr(owner, name, limited(getattr(owner, name)))
    return left


def what_is_there(folder, models):
    if not (folder / "config.json").exists():
        with pytest.raises(ValueError, match=r"expected config\.json in"):
            load_pretrained(folder)
        return "none"
    older, newer = (is_model(folder, model) for model in models)
    assert older != newer
    return "older" if older else "newer"


@pytest.mark.parametrize("shard", [150, 10**9])
def test_killed_at_any_change_it_is_the_older_the_newer_or_none(
    models, tmp_path, monkeypatch, shard
):
    seen = []
    for changes in range(100):
        folder = tmp_path / str(changes)
        save_pretrained(models[0], folder, max_shard_bytes=SMALL)
        with monkeypatch.context() as patched:
            left = kill_after(patched, changes)
            try:
                save_pretrained(models[1], folder, max_shard_bytes=shard)
            except Killed:
                assert left == [0]
        seen.append(what_is_there(folder, models))
        if left[0]:  # It came to its end.
            break
        # Whatever was left behind, the next save is whole.
        save_pretrained(models[1], folder, max_shard_bytes=shard)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        assert is_model(folder, models[1])
    order = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    assert order == ["older", "none", "newer"]


def test_a_full_disk_is_named_and_leaves_the_older_checkpoint(models, tmp_path, monkeypatch):
    save_pretrained(models[0], tmp_path, max_shard_bytes=SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    *shards, index = weight_files(tmp_path)
    for number, name in enumerate([*shards, index, "config.json"], start=1):
        calls = []

        def fsync(descriptor, calls=calls, number=number):
            calls.append(descriptor)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            with pytest.raises(OSError, match="cannot write: No space left") as raised:
                save_pretrained(models[1], tmp_path, max_shard_bytes=SMALL)
        assert raised.value.errno == errno.ENOSPC
        assert Path(raised.value.filename).name == name
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_way_is_named(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_pretrained(models[0], tmp_path / "file")


def test_extra_fields(models, tmp_path):
    extra = {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": None,
        "max_position_embeddings": 64,
        "attention_bias": False,  # Says what is so without a word.
        "hidden_size": 8,
    }
    save_pretrained(models[0], tmp_path, extra=extra)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert {name: fields[name] for name in extra} == extra
    assert load_config(tmp_path, context_length=16) == CONFIG
    assert load_config(tmp_path).context_length == 64
    save_pretrained(models[0], tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).keys() == (
        fields.keys() - {"bos_token_id", "eos_token_id", "pad_token_id", "attention_bias"}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_shard_bytes": 0}, "max_shard_bytes: expected at least 1, got 0"),
        (
            {"extra": {"hidden_size": 9}},
            "extra: hidden_size: expected a field that leaves the model as it is, got 9",
        ),
        ({"extra": {"torch_dtype": "float16"}}, 'extra: torch_dtype: .*, got "float16"'),
        ({"extra": {"mlp_bias": True}}, "extra: mlp_bias: expected a field that .*, got true"),
        ({"extra": {"rope_parameters": {"rope_theta": 7.0}}}, "extra: rope_parameters: expected a"),
        ({"extra": {"quantization_config": {"bits": 4}}}, "extra: quantization_config: expected a"),
        (
            {"extra": {"max_position_embeddings": 15}},
            "extra: max_position_embeddings: .* of at least context_length = 16, got 15",
        ),
        ({"extra": {"max_position_embeddings": "64"}}, 'max_position_embeddings: .*, got "64"'),
        ({"extra": {"eos_token_id": {3}}}, r"extra: eos_token_id: .* JSON can hold, got \{3\}"),
        ({"extra": {"scale": float("nan")}}, "extra: scale: .* JSON can hold, got nan"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(models, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        save_pretrained(models[0], tmp_path / "folder", **options)
    assert not list(tmp_path.iterdir())
