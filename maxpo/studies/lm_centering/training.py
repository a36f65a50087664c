"""Training a small model on the puzzle, all seeds of a method in one compiled call.

The parts are those of the trainer: `generate`, `update.make_update`, `sft.make_update`. The puzzle
is graded in the program, so that whole pieces of a run are one loop on the device.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import pass_at_k, training
from maxpo.lm.model.sharding import RULES
from maxpo.lm.training import sft
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.update import Batch, make_update
from maxpo.methods import choose_advantages, parse_methods
from maxpo.studies.lm_centering import variance
from maxpo.studies.lm_centering.policy import Draw, loss_settings, make_draw, make_policies
from maxpo.studies.lm_centering.puzzle import (
    Puzzles,
    all_puzzles,
    grade,
    in_format,
    random_answers,
    split,
)

__all__ = ["Trainer", "make_trainer"]

# Uses of one seed's key; training folds in the number of the update, from 0.
_INIT, _FINE_TUNE, _TRAIN, _EVALUATE, _MEASURE = range(5)


class Trainer(NamedTuple):
    """Training over all S seeds at once.

    Attributes:
      start: Updates of the fine-tuning -> every seed's parameters after it, leaves `[S, ...]`.
      format_share: Parameters -> `[S]`, the share of held-out puzzles' samples in format.
      measure: Parameters -> the variance of a group's gradient, leaves `[S, ...]`.
      train: (parameters, number of the method, learning rate) -> pass@k `[E + 1, S, K]` on
        held-out puzzles, before the first update and after every `evaluate_every` of them.
    """

    start: Callable[[int], nnx.State]
    format_share: Callable[[nnx.State], np.ndarray]
    measure: Callable[[nnx.State], variance.Measured]
    train: Callable[[nnx.State, int, float], np.ndarray]


def make_trainer(config: ConfigDict) -> Trainer:
    """The trainer of the config's methods.

    A seed has the same start, prompts and random numbers whatever the method and its learning
    rate, so differences between methods are paired.
    """
    rl, keys = config.rl, jax.random.split(jax.random.key(config.seed), config.seeds)
    puzzles = all_puzzles(config.puzzle.least, config.puzzle.most)
    learned, judged = split(puzzles, config.puzzle.held_out, config.seed)
    use = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    graph, params = make_policies(config, use(keys, _INIT))
    draw = make_draw(config, graph)

    def evaluate(key: jax.Array, params: nnx.State) -> jax.Array:
        correct = grade(judged, draw(params, judged.prompts, config.samples, key))
        return jnp.stack([jnp.mean(pass_at_k(correct, k)) for k in config.eval_ks])

    def well_formed(key: jax.Array, params: nnx.State) -> jax.Array:
        return jnp.mean(in_format(draw(params, judged.prompts, config.samples, key)))

    advance = _make_advance(config, graph, learned, draw)
    optimizer = make_optimizer(rl, 0.0, rules=RULES)  # Its rate does not matter to a first state.
    initial = jax.jit(jax.vmap(lambda params: training.init_state(params, optimizer)))
    measure = variance.make_measure(config, graph, learned, draw)
    all_evaluate, all_well_formed, all_measure = (
        jax.jit(jax.vmap(part)) for part in (evaluate, well_formed, measure)
    )

    def train(params: nnx.State, method: int, rate: float) -> np.ndarray:
        state = initial(params)
        # The same random numbers at every evaluation: differences between them are the policy's.
        found = [all_evaluate(use(keys, _EVALUATE), state.params)]
        for _ in range(rl.steps // config.evaluate_every):
            state = advance(method, jnp.float32(rate), use(keys, _TRAIN), state)
            found.append(all_evaluate(use(keys, _EVALUATE), state.params))
        return np.stack([np.asarray(values, np.float64) for values in found])

    return Trainer(
        lambda steps: _fine_tuned(config, steps, graph, params, learned, use(keys, _FINE_TUNE)),
        lambda params: np.asarray(all_well_formed(use(keys, _EVALUATE), params), np.float64),
        lambda params: all_measure(use(keys, _MEASURE), params),
        train,
    )


def _make_advance(
    config: ConfigDict, graph: nnx.GraphDef, puzzles: Puzzles, draw: Draw
) -> jax.stages.Wrapped:
    """(method, learning rate, keys, states) to all seeds' states `evaluate_every` updates later."""
    rl = config.rl
    methods = parse_methods(config.methods, group_size=rl.group_size)
    update = make_update(
        graph,
        loss_settings(config),
        choose_advantages(methods, rl.steps),
        optimizer=partial(make_optimizer, rl, rules=RULES),
    )

    def advance(
        method: jax.Array, rate: jax.Array, key: jax.Array, state: training.TrainState
    ) -> training.TrainState:
        def one_update(state: training.TrainState, _: None) -> tuple[training.TrainState, None]:
            of_prompts, of_samples, of_update = jax.random.split(
                jax.random.fold_in(key, state.step), 3
            )
            shape = (rl.prompts,)
            drawn = puzzles.take(jax.random.randint(of_prompts, shape, 0, len(puzzles.sums)))
            completions = draw(state.params, drawn.prompts, rl.group_size, of_samples)
            rewards = grade(drawn, completions)
            kept = jnp.ones_like(rewards, bool)
            return update(
                state,
                Batch(drawn.prompts, completions, rewards, kept, kept),
                of_update,
                step=state.step,
                learning_rate=rate,
                method=method,
            )[0], None

        return jax.lax.scan(one_update, state, length=config.evaluate_every)[0]

    return jax.jit(jax.vmap(advance, in_axes=(None, None, 0, 0)), donate_argnums=3)


def _fine_tuned(
    config: ConfigDict,
    steps: int,
    graph: nnx.GraphDef,
    params: nnx.State,
    puzzles: Puzzles,
    keys: jax.Array,
) -> nnx.State:
    """Every seed's parameters after so many updates on random answers, new ones in each."""
    settings = ConfigDict({**config.sft, "steps": steps})
    learn = sft.make_update(graph, settings, rules=RULES)
    count = settings.batch_size

    def one(key: jax.Array, params: nnx.State) -> nnx.State:
        def one_update(state: training.TrainState, _: None) -> tuple[training.TrainState, None]:
            of_prompts, of_answers = jax.random.split(jax.random.fold_in(key, state.step))
            numbers = jax.random.randint(of_prompts, (count,), 0, len(puzzles.sums))
            answers = random_answers(of_answers, count, config.puzzle.digits)
            prompts = puzzles.take(numbers).prompts
            return learn(state, prompts, answers, jnp.ones_like(answers, bool))[0], None

        state = training.init_state(params, make_optimizer(settings, 0.0, rules=RULES))
        return jax.lax.scan(one_update, state, length=steps)[0].params

    return jax.jit(jax.vmap(one))(keys, params)
