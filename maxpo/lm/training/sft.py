"""Supervised fine-tuning: cross-entropy on answers, prompts masked, the end token learned."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx
from ml_collections import ConfigDict

from maxpo import losses, parallel, training
from maxpo.lm.model.policy import NOTHING_FROZEN
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.sharding import Rules
from maxpo.lm.model.token_log_probs import completion_log_probs
from maxpo.lm.training.optimizer import make_optimizer, sft_rate

__all__ = ["make_update"]

Metrics = dict[str, jax.Array]


def make_update(
    graph: nnx.GraphDef,
    config: ConfigDict,
    *,
    rules: Rules | None,
    layout: Callable[[Any], Any] = lambda state: None,
    frozen: nnx.State = NOTHING_FROZEN,
) -> Callable[
    [training.TrainState, Prompts, jax.Array, jax.Array], tuple[training.TrainState, Metrics]
]:
    """The compiled update of the fine-tuning.

    Args:
      graph: The policy's structure.
      config: The `sft` of a config; see `sft_rate`.
      rules: Those of the model, see `maxpo.lm.model.sharding`.
      layout: Where a state lies on a mesh; each update leaves it there.
      frozen: What the policy has beside trained parameters.

    Returns:
      (state, prompts, answers' tokens `[B, T]`, their mask) -> (state, metrics); the state is
      donated. The loss is the mean over tokens of `-log pi(token | past)`, in nats.
    """

    @partial(jax.jit, donate_argnums=1)
    def update(
        frozen: nnx.State,
        state: training.TrainState,
        prompts: Prompts,
        tokens: jax.Array,
        mask: jax.Array,
    ) -> tuple[training.TrainState, Metrics]:
        def loss(params: nnx.State) -> jax.Array:
            model = nnx.merge(graph, params, frozen)
            answers = completion_log_probs(model, prompts, tokens[:, None], mask[:, None])
            return -losses.masked_mean(answers.log_probs, where=mask[:, None])

        value, gradients = jax.value_and_grad(loss)(state.params)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        rate = sft_rate(config, state.step)
        state = training.apply_gradients(
            state, gradients, make_optimizer(config, rate, rules=rules)
        )
        return parallel.constrain_to(state, layout(state)), metrics

    return partial(update, frozen)
