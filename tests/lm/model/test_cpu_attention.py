"""The attention of updates on a CPU, against JAX's with autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxpo.lm.model._attention import attention
from maxpo.lm.model._cpu_attention import cpu_attention

B, T, S, HEADS, KV_HEADS, WIDTH = 2, 5, 7, 6, 2, 4


def results(attend, dtype):
    """The attention, and gradients of queries, keys and values."""
    rng = np.random.default_rng(0)
    shapes = ((B, T, HEADS, WIDTH), (B, S, KV_HEADS, WIDTH), (B, S, KV_HEADS, WIDTH))
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    slopes = jnp.asarray(rng.normal(size=shapes[0]), dtype)
    mask = np.array(rng.random((B, 1, T, S)) < 0.5)
    mask[..., 0] = True  # No query sees nothing.
    mask[..., 3] = False  # A key that nothing sees.
    attended, pull = jax.vjp(lambda *x: attend(*x, jnp.asarray(mask)), *arrays)
    return [attended, *pull(slopes)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.03)])
def test_is_attention_with_its_gradients(dtype, tolerance):
    ours, theirs = (results(attend, dtype) for attend in (cpu_attention, attention))
    for name, x, y in zip(("result", "query", "key", "value"), ours, theirs, strict=True):
        assert x.dtype == y.dtype == dtype, name
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_allclose(x, y, atol=tolerance * np.abs(y).max(), err_msg=name)
    for of_unseen in (ours[2][:, 3], ours[3][:, 3]):
        assert not of_unseen.any()
