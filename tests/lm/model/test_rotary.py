"""Rotary positions: by hand, by the published equations, and against transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rope_oracle

from maxpo.lm.model._rotary import frequencies, rotation
from maxpo.lm.model.config import Llama3Rope, TransformerConfig

LLAMA_31 = Llama3Rope(8.0, 1.0, 4.0, 8192)
LLAMA_32 = Llama3Rope(32.0, 1.0, 4.0, 8192)
# Width of a head, base and scaling, of Llama 3.1-8B, Llama 3.2-1B, Qwen2.5-7B and of what is odd.
SETTINGS = [
    (128, 5e5, LLAMA_31),
    (64, 5e5, LLAMA_32),
    (128, 1e6, None),
    (80, 1e4, None),  # Not a power of two: rounded exponents matter.
    (32, 500.0, Llama3Rope(3, 0.5, 7.5, 200)),
]
LONGEST = 131072
POSITIONS = np.unique(
    np.concatenate([np.arange(300), np.random.default_rng(0).integers(0, LONGEST, 3000), [LONGEST]])
).astype(np.int32)


def make_config(width, theta, scaling):
    return TransformerConfig(
        vocab_size=8,
        context_length=LONGEST,
        hidden=width,
        layers=1,
        heads=1,
        kv_heads=1,
        mlp=8,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def test_llama3_scaling_by_hand():
    """Within 60 tokens: over 4 turns stay, below 1 are a third, and 2.5 are half way between."""
    # With this base the second pair turns 2.5 times in 60 tokens, the third 0.65 times.
    theta = (60 / (2 * math.pi) / 2.5) ** 3
    first, second, third = frequencies(6, theta, Llama3Rope(3.0, 1.0, 4.0, 60))
    turn = 2 * math.pi / 60
    assert first == 1  # 9.5 turns.
    np.testing.assert_allclose(second, (2.5 + 2.5 / 3) / 2 * turn, rtol=1e-6)
    np.testing.assert_allclose(third, (2.5 * turn) ** 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_frequencies_are_those_of_the_equations(setting):
    actual = frequencies(*setting)
    assert actual.dtype == np.float32
    expected = rope_oracle.frequencies(make_config(*setting))
    np.testing.assert_allclose(actual, expected, rtol=2e-6)
    if setting[2] is not None:
        assert (np.abs(actual / frequencies(*setting[:2], None) - 1) > 0.1).any()


@pytest.mark.parametrize("setting", SETTINGS)
def test_long_angles_keep_what_float32_holds(setting):
    """Cosines and sines of products that are rounded to float32, at positions up to 128k."""
    of_positions = frequencies(*setting)
    angles = POSITIONS[:, None].astype(np.float32) * of_positions
    actual = jax.jit(lambda positions: rotation(positions, of_positions))(jnp.asarray(POSITIONS))
    for function, values in ((np.cos, actual.cosines), (np.sin, actual.sines)):
        np.testing.assert_allclose(values, function(angles.astype(np.float64)), atol=2e-7, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_agrees_with_transformers_up_to_128k_positions(setting):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    width, theta, scaling = setting
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {"rope_type": "llama3", **vars(scaling)}
    theirs = LlamaRotaryEmbedding(
        transformers.LlamaConfig(
            hidden_size=width,
            num_attention_heads=1,
            head_dim=width,
            max_position_embeddings=LONGEST,
            rope_parameters=rope,
        )
    )
    of_positions = frequencies(*setting)
    np.testing.assert_array_max_ulp(of_positions, theirs.inv_freq.numpy(), maxulp=4)
    # Torch rounds its powers up or down by the processor that it runs on. Equal frequencies, which
    # are nearly all, have equal angles.
    equal = of_positions == theirs.inv_freq.numpy()
    assert equal.mean() > 0.9
    actual = rotation(jnp.asarray(POSITIONS), of_positions)
    expected = theirs(torch.zeros(()), torch.from_numpy(POSITIONS)[None])
    for ours, other in zip(actual, expected, strict=True):
        other = other[0, :, : width // 2].numpy()
        np.testing.assert_allclose(np.asarray(ours)[:, equal], other[:, equal], atol=2e-7, rtol=0)
