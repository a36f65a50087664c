"""The grid policy, against naive computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maxpo.mazes.environment import Observation
from maxpo.mazes.policy import GridPolicy

GRID, FEATURES, ACTIONS = (4, 5, 2), (3,), 4
KINDS = ("mlp", "conv")


def draw(key, *batch):
    keys = jax.random.split(key)
    grid, features = (
        jax.random.normal(key, (*batch, *shape))
        for key, shape in zip(keys, (GRID, FEATURES), strict=True)
    )
    return Observation(grid, features)


def make(kind, hidden=(6,)):
    return GridPolicy(draw(jax.random.key(0)), ACTIONS, kind=kind, hidden=hidden, rngs=nnx.Rngs(0))


def make_random(kind, hidden=(6,)):
    """A policy whose head is not zero."""
    policy = make(kind, hidden)
    policy.head.kernel[...] = jax.random.normal(jax.random.key(1), policy.head.kernel.shape) / 3
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_out_uniform(kind):
    policy, observations = make(kind), draw(jax.random.key(2), 3)
    np.testing.assert_array_equal(policy.logits(observations), np.zeros((3, ACTIONS)))
    np.testing.assert_allclose(policy.entropy(observations), np.log(ACTIONS), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_network_written_out(kind):
    """And any leading axes are batch: here two, below one at a time."""
    policy, observations = make_random(kind, (6, 3)), draw(jax.random.key(2), 2, 3)
    actual = policy.logits(observations)
    assert actual.shape == (2, 3, ACTIONS)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(6, *x.shape[2:]), observations)
    if kind == "conv":
        values = flat.grid
        for layer in policy.hidden:
            inputs, outputs = layer.kernel.shape
            values = jax.lax.conv_general_dilated(
                values,
                layer.kernel[...].reshape(3, 3, inputs // 9, outputs),
                window_strides=(1, 1),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            values = np.maximum(values + layer.bias[...], 0)
        values = np.concatenate([values.reshape(6, -1), flat.features], axis=1)
    else:
        values = np.concatenate([flat.grid.reshape(6, -1), flat.features], axis=1)
        for layer in policy.hidden:
            values = np.maximum(values @ layer.kernel[...] + layer.bias[...], 0)
    expected = values @ policy.head.kernel[...] + policy.head.bias[...]
    np.testing.assert_allclose(actual.reshape(6, ACTIONS), expected, rtol=1e-4, atol=1e-5)


def test_log_prob_entropy_and_samples_are_of_the_softmax():
    policy, one = make_random("mlp"), draw(jax.random.key(2))
    logits = np.asarray(policy.logits(one), np.float64)
    p = np.exp(logits) / np.exp(logits).sum()
    assert p.max() > 1.2 / ACTIONS  # Not the uniform distribution, which a mistake may give, too.

    n = 20_000
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), one)
    drawn = policy.sample(jax.random.key(3), many)
    assert drawn.dtype == jnp.int32
    error = np.sqrt(p * (1 - p) / n)
    assert np.all(np.abs(np.bincount(drawn, minlength=ACTIONS) / n - p) < 4 * error)
    np.testing.assert_allclose(policy.log_prob(many, drawn), np.log(p)[drawn], rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(one), -(p * np.log(p)).sum(), rtol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match=r"kind: expected one of mlp, conv; got 'cnn'"):
        make("cnn")
    with pytest.raises(ValueError, match=r"one grid \[H, W, C\] .* got shapes \(2, 4, 5, 2\)"):
        GridPolicy(draw(jax.random.key(0), 2), ACTIONS, rngs=nnx.Rngs(0))
