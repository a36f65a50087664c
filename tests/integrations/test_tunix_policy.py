"""A Qwen3 of Tunix, which knows nothing of this library, as the policy of our trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tunix_warnings
from flax import nnx

from maxpo import lm
from maxpo.lm.model.generation import generate
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs
from maxpo.lm.model.uncached import Uncached

pytest.importorskip("tunix")

pytestmark = tunix_warnings.IGNORED

TOKENIZER = lm.CharTokenizer("abcd=")


class Adapter(nnx.Module):
    """Tunix's arguments from tokens and their mask."""

    def __init__(self, model):
        self.model = model

    def __call__(self, tokens, mask):
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        seen = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool)) & mask[:, None]
        # A padded row sees itself, for a softmax over nothing is no number.
        seen |= jnp.eye(tokens.shape[1], dtype=bool)
        logits, _ = self.model(tokens, positions, None, seen)
        return logits


def make_policy():
    from tunix.models.qwen3 import model as qwen3

    sizes = qwen3.ModelConfig(
        num_layers=2,
        vocab_size=TOKENIZER.vocab_size,
        embed_dim=16,
        hidden_dim=32,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        rope_theta=10_000,
        norm_eps=1e-6,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        model = qwen3.Qwen3(sizes, rngs=nnx.Rngs(0))
    # Off the mesh again: the parameters as they lie on one device.
    nnx.update(model, jax.tree.map(np.asarray, nnx.state(model)))
    return Uncached(Adapter(model), vocab_size=TOKENIZER.vocab_size, context_length=16)


def test_samples_are_scored_as_they_were_drawn():
    policy = make_policy()
    tokens = np.array([[2, 3, 4], [0, 5, 6]])
    prompts = Prompts(tokens, tokens > 0)
    found = generate(
        policy, prompts, group_size=4, max_new_tokens=4, eos_id=1, key=jax.random.key(0)
    )
    scored = completion_log_probs(policy, prompts, found.tokens, found.mask)
    np.testing.assert_allclose(scored.log_probs, found.log_probs, rtol=1e-4, atol=1e-5)
    assert np.asarray(found.mask).sum() > 16


def test_it_learns_what_it_is_rewarded_for(tmp_path):
    problems = [lm.Problem(f"{letter}=", letter) for letter in "abcd"]
    result = lm.train(
        make_policy(),
        TOKENIZER,
        problems,
        reward=lambda problem, text: float(text[:1] == problem.answer),
        method="maxpo:k=2",
        group_size=8,
        prompts=4,
        steps=30,
        max_new_tokens=2,
        samples=32,
        optimizer=optax.adam(1e-2),
        workdir=tmp_path / "run",
    )
    before, after = (result.curve[name].value[0] for name in ("before", "after"))
    # 128 samples: a standard error of at most 0.045.
    assert after > before + 5 * 0.063
