"""Training bandit policies with several methods, all seeds of each in one compiled call.

Every update draws one group of N actions for each context, computes advantages, and takes one
optimizer step on the mean score-function loss. What is reported is exact: the objectives J_1 and
J_k come in closed form from the policy, and only the gradient variance is itself an estimate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import losses, parallel, plotting, runs, training
from maxpo.adaptive_k import init_success_estimate
from maxpo.bandits import task as bandit
from maxpo.methods import Method, check_graded, parse_methods
from maxpo.studies.variance import moments

__all__ = [
    "METRICS",
    "Metrics",
    "Task",
    "Trainer",
    "check_config",
    "final_figures",
    "learning_curves",
    "learning_rates",
    "make_task",
    "make_trainer",
    "read_methods",
    "summarize",
]

Task = bandit.ContextualBandit | bandit.SquareOnInterval
Metrics = dict[str, jax.Array]

METRICS = {
    "max_at_k": "max@{k:g}  $J_{{{k:g}}}$ (exact)",
    "mean_reward": "mean reward  $J_1$ (exact)",
    "gradient_variance": "gradient variance (trace)",
    "entropy": "policy entropy (nats)",
}

# Those of rewards that are 0 or 1.
_BINARY_LAWS = ("bernoulli", "uneven")

# Uses of one seed's key; training folds in the number of the update, from 0.
_TASK, _POLICY, _TRAIN, _EVALUATE = range(4)


class Trainer(NamedTuple):
    """Training over all seeds at once: every leaf has a leading axis `[S]`.

    Attributes:
      keys: `[S]` PRNG keys.
      init: keys -> the state before the first update.
      advance: (method, learning_rate, keys, state) -> the state after `evaluate_every` further
        updates with that method, given by its number in the config. Compiled once for all.
      objective: (key, state) -> exact J_k of one seed's policy.
      evaluate: (method, keys, state) -> metrics. Compiled once for all.
    """

    keys: jax.Array
    init: Callable[[jax.Array], training.TrainState]
    advance: jax.stages.Wrapped
    objective: Callable[[jax.Array, training.TrainState], jax.Array]
    evaluate: jax.stages.Wrapped


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "group_size": 2,
            "seeds": 2,
            "updates": 1,
            "evaluate_every": 1,
            "variance_batches": 2,
            "eval_k": 1,
            "k_updates": 0,
        },
        above={"learning_rate": 0},
    )
    if config.updates % config.evaluate_every:
        raise ValueError(
            f"updates: expected a multiple of evaluate_every = {config.evaluate_every}, "
            f"got {config.updates}"
        )
    _check_optimizer(config)
    _check_task(config.task)
    methods = read_methods(config)
    names = [method.estimator for method in methods]
    if config.task.name != "contextual":
        setting = f"task.name={config.task.name}"
    elif config.task.law not in _BINARY_LAWS:
        setting = f"task.law={config.task.law}"
    else:
        return
    check_graded(names, "methods", setting)
    if any(method.adapts for method in methods):
        raise ValueError(
            f"methods: expected a number as k of graded rewards, as {setting} says, got adaptive, "
            "which needs rewards of 0 or 1"
        )


def read_methods(config: ConfigDict) -> list[Method]:
    """The config's methods, in its order.

    Raises:
      ValueError: As `parse_methods`.
    """
    return parse_methods(config.methods, group_size=config.group_size, adaptive=True)


def learning_rates(config: ConfigDict) -> dict[str, float]:
    """By label, in the config's order: a method's own learning rate, or else the config's."""
    return {
        method.label: method.learning_rate or config.learning_rate
        for method in read_methods(config)
    }


def _check_optimizer(config: ConfigDict) -> None:
    try:
        optimizer = getattr(optax, config.optimizer)(config.learning_rate)
    except (AttributeError, TypeError, ValueError):
        optimizer = None
    if not isinstance(optimizer, optax.GradientTransformation):
        # It must take a learning rate alone.
        raise ValueError(f"optimizer: expected a name of optax, got {config.optimizer!r}")


def _check_task(task: ConfigDict) -> None:
    least = {"num_contexts": 1}
    above, finite = {}, []
    if task.name == "contextual":
        least |= {"num_features": 0, "num_arms": 1}
        above = {"law_parameter": 0}
        if task.law not in bandit.REWARD_LAWS:
            raise ValueError(
                f"task.law: expected one of {', '.join(bandit.REWARD_LAWS)}; got {task.law!r}"
            )
        if task.law in _BINARY_LAWS and task.law_parameter > 1:
            raise ValueError(
                "task.law_parameter: expected a success rate of at most 1, got "
                f"{task.law_parameter}"
            )
    elif task.name == "square":
        above, finite = {"std": 0}, ["mean"]
    else:
        raise ValueError(f"task.name: expected contextual or square, got {task.name!r}")
    runs.check_numbers(
        ConfigDict({"task": task}),
        at_least={f"task.{field}": bound for field, bound in least.items()},
        above={f"task.{field}": bound for field, bound in above.items()},
        finite=[f"task.{field}" for field in finite],
    )


def make_task(task: ConfigDict, key: jax.Array) -> Task:
    """Draws the task of one seed."""
    if task.name == "square":
        return bandit.SquareOnInterval(jnp.zeros((task.num_contexts, 1)), task.mean, task.std)
    return bandit.make_contextual_bandit(
        key,
        num_contexts=task.num_contexts,
        num_features=task.num_features,
        num_arms=task.num_arms,
        law=bandit.REWARD_LAWS[task.law],
        law_parameter=task.law_parameter,
    )


def make_trainer(config: ConfigDict) -> Trainer:
    """The trainer of the config's methods.

    Seed s has the same task, the same initial policy and the same random numbers whatever the
    method, so differences between methods are paired.
    """
    steps = config.k_updates or config.updates
    methods = read_methods(config)
    advantages = [method.bind(steps) for method in methods]
    adapts = any(method.adapts for method in methods)
    make_optimizer = getattr(optax, config.optimizer)
    contexts = np.arange(config.task.num_contexts)

    def make(key: jax.Array) -> tuple[Task, nnx.GraphDef, nnx.State]:
        task = make_task(config.task, jax.random.fold_in(key, _TASK))
        policy = task.make_policy(nnx.Rngs(jax.random.fold_in(key, _POLICY)))
        return task, *nnx.split(policy)

    def gradient(
        method: jax.Array,
        task: Task,
        graph: nnx.GraphDef,
        state: training.TrainState,
        key: jax.Array,
    ) -> tuple[nnx.State, jax.Array]:
        observations = task.observations
        actions = nnx.merge(graph, state.params).sample(key, observations, config.group_size)
        rewards = task.reward(actions)
        rates = None if state.success is None else state.success.rate(contexts)
        # A switch, so that all that the estimators share is compiled once.
        weights = jax.lax.switch(method, advantages, rewards, state.step, None, rates)

        def loss(params: nnx.State) -> jax.Array:
            log_probs = nnx.merge(graph, params).log_prob(observations, actions)
            return losses.score_function_loss(log_probs, weights)

        return jax.grad(loss)(state.params), rewards

    def init(key: jax.Array) -> training.TrainState:
        _, _, params = make(key)
        state = training.init_state(params, make_optimizer(config.learning_rate))
        success = init_success_estimate(config.task.num_contexts) if adapts else None
        return state._replace(success=success)

    def advance(
        method: jax.Array, learning_rate: jax.Array, key: jax.Array, state: training.TrainState
    ) -> training.TrainState:
        optimizer = make_optimizer(learning_rate)
        task, graph, _ = make(key)
        train_key = jax.random.fold_in(key, _TRAIN)

        def update(state: training.TrainState, _: None) -> tuple[training.TrainState, None]:
            sample_key = jax.random.fold_in(train_key, state.step)
            gradients, rewards = gradient(method, task, graph, state, sample_key)
            state = training.apply_gradients(state, gradients, optimizer)
            if state.success is not None:
                state = state._replace(success=state.success.update(contexts, rewards > 0))
            return state, None

        return jax.lax.scan(update, state, length=config.evaluate_every)[0]

    def objective(key: jax.Array, state: training.TrainState) -> jax.Array:
        task, graph, _ = make(key)
        return task.expected_max(nnx.merge(graph, state.params), config.eval_k)

    def evaluate(method: jax.Array, seed_key: jax.Array, state: training.TrainState) -> Metrics:
        task, graph, _ = make(seed_key)
        policy = nnx.merge(graph, state.params)
        key = jax.random.fold_in(jax.random.fold_in(seed_key, _EVALUATE), state.step)
        keys = jax.random.split(key, config.variance_batches)
        drawn = jax.vmap(lambda key: gradient(method, task, graph, state, key)[0])(keys)
        variances = jax.tree.map(lambda g: jnp.sum(jnp.var(g, axis=0, ddof=1)), drawn)
        return {
            "max_at_k": objective(seed_key, state),
            "mean_reward": task.expected_max(policy, 1),
            "gradient_variance": sum(jax.tree.leaves(variances), jnp.zeros(())),
            "entropy": jnp.mean(policy.entropy(task.observations)),
        }

    keys = parallel.spread_runs(jax.random.split(jax.random.key(config.seed), config.seeds))
    return Trainer(
        keys,
        jax.jit(jax.vmap(init)),
        jax.jit(jax.vmap(advance, in_axes=(None, None, 0, 0))),
        objective,
        jax.jit(jax.vmap(evaluate, in_axes=(None, 0, 0))),
    )


def summarize(metrics: Metrics) -> dict[str, float]:
    """Means of `METRICS` over seeds and their standard errors, as `name` and `name_sem`."""
    figures: dict[str, float] = {}
    for name in METRICS:
        value, error = moments.mean(metrics[name])
        figures |= {name: float(value), f"{name}_sem": float(error)}
    return figures


def final_figures(history: Sequence[Mapping[str, Any]], label: str) -> dict[str, float]:
    """The last figures that were logged of a method."""
    row = [row for row in history if row["method"] == label][-1]
    return {key: value for key, value in row.items() if key not in ("step", "method")}


def learning_curves(history: Sequence[Mapping[str, Any]], eval_k: float) -> Figure:
    """J_k, J_1, gradient variance and entropy over updates, with bands of two standard errors."""
    panels = {}
    for metric, title in METRICS.items():
        lines = plotting.from_rows(history, "step", metric)
        if metric == "gradient_variance":  # There is no logarithm of what is below 0.
            least = min((row[metric] for row in history if row[metric] > 0), default=0) / 10
            lines = {
                label: line._replace(low=np.maximum(line.low, least))
                for label, line in lines.items()
            }
        panels[title.format(k=eval_k)] = lines
    positive = all(row["gradient_variance"] > 0 for row in history)
    log = [METRICS["gradient_variance"]] if positive else []
    return plotting.learning_curves(panels, xlabel="updates", log=log)
