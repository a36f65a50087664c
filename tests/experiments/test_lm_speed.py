"""The language model's benchmark: every variant, shrunk, and what its figures are made of."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import lm_speed
from maxpo.lm.model.transformer import Transformer
from maxpo.runs import load_config, read_metrics
from maxpo.studies.speed import lm_speed as study
from maxpo.studies.speed.work import update_flops

FILE = "configs/lm_speed.py"


def flops_of(config):
    return update_flops(
        study.model_config(config),
        prompts=config.prompts,
        group_size=config.group_size,
        prompt_length=config.prompt_length,
        new_tokens=config.new_tokens,
    )


def shrink(config):
    """Every variant to the same small model, its other settings kept."""
    config.repeats = 2
    config.prompts, config.group_size = 2, 4
    config.micro_batches = min(config.micro_batches, 2)
    config.prompt_length, config.new_tokens = 3, 9
    config.model.update(vocab_size=32, hidden=16, layers=1, heads=4, kv_heads=2, mlp=24)
    config.long_vocabulary.prompt_length, config.long_vocabulary.new_tokens = 4, 60
    config.long_vocabulary.model.update(vocab_size=5000, hidden=16, layers=1)
    return config


@pytest.fixture(scope="module")
def small():
    """Config, model and batch."""
    config = shrink(load_config(FILE))
    model = Transformer(study.model_config(config), rngs=nnx.Rngs(0))
    return config, model, study.make_batch(config, jax.random.key(0))


@pytest.fixture(scope="module")
def update(small):
    """Loss and gradients of our update."""
    _, model, batch = small
    function, state = study.update_function(model, study.policy_loss)
    return jax.jit(function)(state, batch)


@pytest.mark.slow
def test_quick_variant(tmp_path, capsys):
    config = load_config(f"{FILE}:quick")
    config.long_vocabulary.new_tokens = 60
    summary = lm_speed.train_and_evaluate(config, tmp_path)
    assert list(summary) == [
        "sampling",
        "update",
        "unshared update",
        "decoding step, last quarter",
        "update's memory at vocabulary 5000",
    ]
    assert all(row["maxpo"] > 0 for row in summary.values())
    assert summary["sampling"]["compared"] is None
    # Chunks hold no more at once than all tokens, so this is a matter of what autodiff keeps.
    assert summary["update's memory at vocabulary 5000"]["ratio"] < 1
    lines = read_metrics(tmp_path)
    assert {line["step"] for line in lines} == {1, 2}
    assert {line["call"] for line in lines} >= {"sampling", "update", "decoding, quarter 4"}
    assert (tmp_path / "lm_speed.png").stat().st_size > 10_000
    assert "unshared update" in capsys.readouterr().out
    assert lm_speed.train_and_evaluate(config, tmp_path) == summary


@pytest.mark.slow
def test_gpu_variant_compares_with_peaks(tmp_path):
    config = shrink(load_config(f"{FILE}:gpu"))
    config.model.tied_embeddings = False
    config.peak.update(flops=2e12, bandwidth=3e9)
    summary = lm_speed.train_and_evaluate(config, tmp_path)
    assert summary["decoding"]["compared"] == 3
    assert summary["update's products"]["compared"] == 2
    median = {
        name: np.median(
            [line["seconds"] for line in read_metrics(tmp_path) if line["call"] == name]
        )
        for name in ("sampling", "first token", "update")
    }
    loop = median["sampling"] - median["first token"]
    assert np.isclose(summary["decoding"]["maxpo"], study.decoding_bytes(config) / loop / 1e9)
    rate = flops_of(config) / median["update"]
    assert np.isclose(summary["update's products"]["maxpo"], rate / 1e12)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_peaks_of_known_devices(monkeypatch):
    config = load_config(f"{FILE}:gpu")
    assert study.peak(config) is None  # This machine's processor.

    class Device:
        device_kind = "NVIDIA H200"

    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert study.peak(config) == study.PEAKS["NVIDIA H200"]
    config.peak.update(flops=1.0, bandwidth=2.0)
    assert study.peak(config) == study.Peak(1.0, 2.0)


@pytest.mark.slow
def test_losses_are_the_same(small, update):
    _, model, batch = small
    loss, gradients = update
    for other, parts in (
        (study.whole_sequence_loss, 1),
        (study.unchunked_loss, 1),
        (study.policy_loss, 2),
    ):
        function, state = study.update_function(model, other, parts)
        other_loss, other_gradients = jax.jit(function)(state, batch)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            other_gradients,
            gradients,
        )


def test_transformers_does_the_same_work(small, update):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    config, model, batch = small
    calls = study.huggingface_calls(config, model, batch)
    prompts = np.repeat(np.asarray(batch.prompts.tokens), config.group_size, axis=0)
    for cache in ("dynamic", "static"):
        tokens = calls[f"transformers sampling, {cache} cache"]().numpy()
        assert tokens.shape == (8, 3 + 9)
        np.testing.assert_array_equal(tokens[:, :3], prompts)
    loss, gradients = update
    their_loss, theirs = calls["transformers update"]()
    np.testing.assert_allclose(their_loss.item(), loss, rtol=1e-5)
    np.testing.assert_allclose(
        theirs["model.embed_tokens.weight"].numpy(), gradients["embedding"][...], atol=1e-6
    )
    np.testing.assert_allclose(
        theirs["model.layers.0.mlp.down_proj.weight"].numpy(),
        gradients["layers"]["down"][0].T,
        atol=1e-6,
    )


def test_table_compares_with_the_faster_cache(small):
    config, _, _ = small
    new, tokens = 2 * 4 * 9, 2 * 4 * (3 + 9)
    seconds = {
        "sampling": [1.0, 2.0, 9.0],
        "update": [4.0],
        "unshared update": [8.0],
        "transformers sampling, dynamic cache": [6.0],
        "transformers sampling, static cache": [5.0],
        "transformers update": [16.0],
        **{f"decoding, quarter {q}": [float(q)] for q in (1, 2, 3, 4)},
    }
    rows = study.table(config, seconds, {})
    assert [tuple(row.values()) for row in rows.values()] == [
        ("new tokens/s", new / 2, new / 5, 2.5, "transformers, static cache"),
        ("tokens/s", tokens / 4, tokens / 16, 4.0, "transformers"),
        ("tokens/s", tokens / 8, tokens / 16, 2.0, "transformers"),
        ("ms", 2000.0, 500.0, 4.0, "first quarter"),  # Two steps in a quarter of eight.
    ]


def test_counts_of_bytes_and_operations(small):
    """Step by step and token by token, from the sizes of the arrays themselves."""
    config, model, _ = small
    P, N, S, T = 2, 4, 3, 9
    matrices = [x for x in jax.tree.leaves(model.layers.weights()) if x.ndim > 2]
    unembedding = model.unembedding()
    cached = sum(x.size for x in jax.tree.leaves(model.empty_cache(1, 1, 1)))
    expected = 0
    for step in range(1, T):
        floats = sum(x.size for x in matrices) + unembedding.size
        floats += cached * (P * S + P * N * step)
        expected += 4 * floats
    assert study.decoding_bytes(config) == expected

    shape = model.config
    products = 0
    for position in range(S):
        products += P * (sum(x.size for x in matrices) + 2 * (position + 1) * 4 * shape.head_dim)
    for position in range(S, S + T - 1):
        own = sum(x.size for x in matrices) + 2 * (position + 1) * 4 * shape.head_dim
        products += P * N * own
    products += P * N * T * unembedding.size
    assert flops_of(config) == 6 * products


def test_times_of_samples_that_all_end_early_are_refused(small):
    config, model, batch = small
    params = nnx.state(model)
    # A state that is the same for every token, and an end token that it points at.
    rows = np.zeros(model.embedding.shape, np.float32)
    rows[0] = 1
    ending = nnx.clone(model)
    nnx.update(ending, jax.tree.map(lambda x: x * 0, params))
    ending.embedding.set_value(jax.numpy.asarray(rows))
    ending.final_norm.set_value(100 * jax.numpy.ones_like(ending.final_norm[...]))
    zero = batch._replace(prompts=batch.prompts._replace(tokens=batch.prompts.tokens * 0))
    calls = study.our_calls(config, ending, zero, jax.random.key(0))
    with pytest.raises(ValueError, match="every sample ended early"):
        calls["sampling"]()


def test_bad_configs_are_refused_before_any_work(tmp_path, monkeypatch):
    for fields, message in (
        ({"repeats": 0}, "repeats of at least 1, got 0"),
        ({"new_tokens": 4}, "new_tokens of at least 5, got 4"),
        ({"micro_batches": 3}, "micro_batches: expected a divisor of prompts = 2, got 3"),
        ({"huggingface_caches": ("paged",)}, r"\('dynamic', 'static'\), got \('paged',\)"),
        ({"model.size": "huge"}, "'tiny', .*, got 'huge'"),
        ({"long_vocabulary.model.heads": 3}, "kv_heads to divide heads = 3"),
    ):
        config = shrink(load_config(FILE))
        config.update_from_flattened_dict(fields)
        with pytest.raises(ValueError, match=message):
            lm_speed.train_and_evaluate(config, tmp_path / "bad")
    config = shrink(load_config(FILE))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        with pytest.raises(ValueError, match=r"nothing about the gpu .*huggingface=False"):
            lm_speed.train_and_evaluate(config, tmp_path / "bad")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("torch", "safetensors") else find_spec(name, *rest),
    )
    with pytest.raises(ImportError, match=r"needs torch, .*safetensors: pip install 'maxpo\[hf\]'"):
        lm_speed.train_and_evaluate(config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
