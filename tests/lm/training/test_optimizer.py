"""Learning rates, at every update."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from maxpo import training
from maxpo.lm.model.config import make_config
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.sharding import RULES
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training import sft
from maxpo.lm.training.optimizer import sft_rate


def settings(steps, warmup_steps, final_rate=0.1, learning_rate=2.0):
    return ConfigDict(
        {
            "steps": steps,
            "warmup_steps": warmup_steps,
            "final_rate": final_rate,
            "learning_rate": learning_rate,
        }
    )


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "expected"),
    [
        (5, 0, [2, 1.55, 1.1, 0.65, 0.2]),
        (5, 1, [2, 1.55, 1.1, 0.65, 0.2]),
        (5, 2, [1, 2, 1.4, 0.8, 0.2]),
        (5, 4, [0.5, 1, 1.5, 2, 0.2]),
        (4, 4, [0.5, 1, 1.5, 2]),  # Nothing is left to go down in.
        (2, 4, [0.5, 1]),
        (1, 0, [2]),
        (2, 0, [2, 0.2]),
    ],
)
def test_the_rate_grows_and_then_falls_to_its_last_value(steps, warmup_steps, expected):
    found = [float(sft_rate(settings(steps, warmup_steps), done)) for done in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_final_rate_of_1_keeps_the_rate():
    found = [float(sft_rate(settings(4, 2, 1.0), done)) for done in range(4)]
    np.testing.assert_allclose(found, [1, 2, 2, 2], rtol=1e-6)


def test_fine_tuning_learns_at_that_rate(monkeypatch):
    # An optimizer that goes down by the rate itself, whatever the gradient is.
    monkeypatch.setattr(
        sft,
        "make_optimizer",
        lambda settings, rate, rules: optax.stateless(
            lambda updates, params: jax.tree.map(lambda x: x * 0 - rate, updates)
        ),
    )
    shape = make_config(
        "nano", vocab_size=5, context_length=4, hidden=4, layers=1, heads=1, kv_heads=1, mlp=2
    )
    graph, params = nnx.split(Transformer(shape, rngs=nnx.Rngs(0)))
    update = sft.make_update(graph, settings(4, 2, final_rate=0.5, learning_rate=0.25), rules=RULES)
    prompts = Prompts(np.ones((1, 2), np.int32), np.ones((1, 2), bool))
    tokens, mask = np.ones((1, 2), np.int32), np.ones((1, 2), bool)
    state = training.init_state(params, optax.identity())
    scale, falls = np.asarray(state.params["final_norm"][...]).copy(), []
    for _ in range(4):
        state, _ = update(state, prompts, tokens, mask)
        now = np.asarray(state.params["final_norm"][...]).copy()
        falls.append(float(scale[0] - now[0]))
        scale = now
    np.testing.assert_allclose(falls, [0.125, 0.25, 0.1875, 0.125], rtol=1e-5)
