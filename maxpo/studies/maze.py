"""Training memoryless policies in mazes with several estimators, each at its own learning rate.

A group is N episodes of one maze. Every update draws fresh mazes, runs a group in each, computes
advantages from the returns `[M, N]` and takes optimizer steps, all in one compiled function over
all seeds. Curves of max@k and pass@k come from held-out mazes that no seed trains on.

A method (see `maxpo.methods`) may have an entropy bonus, as in "grpo:entropy=0.01"; the coefficient
of "grpo:entropy=sweep" is chosen together with the learning rate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from maxpo import losses, max_at_k, parallel, pass_at_k, runs, training
from maxpo.mazes.environment import Environment, Observation, Trajectory, rollout
from maxpo.mazes.policy import GridPolicy, Kind
from maxpo.methods import Method, check_graded, parse_methods
from maxpo.order_statistics import powers_up_to
from maxpo.studies.variance import moments

__all__ = [
    "EXTRA",
    "LOSSES",
    "METRICS",
    "Metrics",
    "Settings",
    "Study",
    "best_settings",
    "check_config",
    "curve_ks",
    "episode_loss",
    "make_environment",
    "make_settings",
    "make_study",
    "make_table",
    "read_methods",
    "run_keys",
    "summarize",
    "summarize_curves",
    "sweep_keys",
    "sweep_settings",
]

Metrics = dict[str, jax.Array]

EXTRA = {"entropy": ("sweep",)}
"""What this study adds to the language of methods."""

LOSSES = ("score_function", "clipped_ratio")

# Uses of the config's key (held-out mazes are the same for all seeds), and of a seed's key.
_SWEEP, _TRAIN, _VALIDATION, _TEST = range(4)
_POLICY, _UPDATES, _EVALUATE = range(3)


class Settings(NamedTuple):
    """What is tuned, for each of S policies.

    Attributes:
      learning_rate: `[S]`.
      entropy: `[S]`, coefficient of the entropy bonus.
    """

    learning_rate: jax.Array
    entropy: jax.Array


class Study(NamedTuple):
    """Compiled parts of the study; S is the number of policies that are trained at once.

    Attributes:
      environment: What the policies act in.
      methods: Their numbers by name.
      validation: Mazes to choose learning rates by.
      test: Mazes to report on.
      init: keys `[S]` -> the states before the first update.
      advance: (method, settings, keys `[S]`, states) -> the states after `evaluate_every` further
        updates. The states' buffers are donated. Compiled once for all methods.
      evaluate: (mazes, keys `[S]`, states) -> `METRICS` `[S]`, from `evaluation.samples` episodes
        of each maze.
      curves: (mazes, keys `[S]`, states) -> max@k and pass@k, `[S, len(ks)]` each, from
        `curve_samples` episodes of each maze.
      sample: (maze, key, state) -> a trajectory of one group of one seed's policy.
    """

    environment: Environment
    methods: dict[str, jax.Array]
    validation: Any
    test: Any
    init: jax.stages.Wrapped
    advance: jax.stages.Wrapped
    evaluate: jax.stages.Wrapped
    curves: jax.stages.Wrapped
    sample: jax.stages.Wrapped


METRICS = {
    "max_at_k": "max@{k:g} on held-out mazes",
    "mean_return": "mean return on held-out mazes",
    "success": "share of episodes that reach the best goal",
    "entropy": "entropy of a step (nats)",
}


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "seeds": 2,
            "group_size": 2,
            "mazes": 1,
            "updates": 1,
            "evaluate_every": 1,
            "epochs": 1,
            "sweep.seeds": 1,
            "sweep.updates": 0,
            "evaluation.mazes": 1,
            "evaluation.samples": 2,
            "evaluation.curve_samples": 2,
            "eval_k": 1,
            "policy.hidden": 1,
        },
        above={"max_gradient_norm": 0},
        or_infinite=("max_gradient_norm",),
    )
    for field in ("updates", "sweep.updates"):
        if _field(config, field) % config.evaluate_every:
            raise ValueError(
                f"{field}: expected a multiple of evaluate_every = {config.evaluate_every}, got "
                f"{_field(config, field)}"
            )
    for field in ("sweep.learning_rates", "sweep.entropy_coefficients"):
        values = _field(config, field)
        if not values or not all(0 < value < float("inf") for value in values):
            raise ValueError(f"{field}: expected some above 0, got {values}")
    methods = read_methods(config)
    choices = max(
        len({*_rates(config, method)}) * len(_coefficients(config, method)) for method in methods
    )
    if choices > 1 and not config.sweep.updates:
        raise ValueError(
            f"sweep.updates: expected more than 0 to choose among {choices} settings, got 0"
        )
    for field in ("samples", "curve_samples"):
        if config.eval_k > config.evaluation[field]:
            raise ValueError(
                f"eval_k: expected 1 to evaluation.{field} = {config.evaluation[field]}, got "
                f"{config.eval_k}"
            )
    if config.loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}; got {config.loss!r}")
    if config.loss == "score_function" and config.epochs > 1:
        raise ValueError(
            "epochs: expected 1 with loss=score_function, which is only right for the policy that "
            f"acted; got {config.epochs}"
        )
    if config.policy.kind not in get_args(Kind):
        raise ValueError(
            f"policy.kind: expected one of {', '.join(get_args(Kind))}; got {config.policy.kind!r}"
        )
    # Goals of XLand-MiniGrid give less the later they are reached.
    names = [method.estimator for method in methods]
    values = getattr(make_environment(config.task), "values", None)
    if values is None:
        check_graded(names, "methods", f"task.name={config.task.name}")
    elif not {*values} <= {0, 1}:
        check_graded(names, "methods", f"task.values={values}")


def read_methods(config: ConfigDict) -> list[Method]:
    """The config's methods, in its order.

    Raises:
      ValueError: As `parse_methods`.
    """
    return parse_methods(config.methods, group_size=config.group_size, extra=EXTRA)


def make_environment(task: ConfigDict) -> Environment:
    """The environment that the config names.

    Raises:
      ValueError: If a parameter makes no sense, or there is no such task.
      MissingExtraError: If its package is missing, naming the extra.
    """
    options = {name: value for name, value in task.items() if name != "name"}
    if task.name == "maze":
        from maxpo.mazes.maze import MazeEnvironment

        return MazeEnvironment(**options)
    if task.name == "xminigrid":
        from maxpo.mazes.xminigrid import XMiniGrid

        return XMiniGrid(**options)
    raise ValueError(f"task.name: expected maze or xminigrid, got {task.name!r}")


def curve_ks(config: ConfigDict) -> tuple[int, ...]:
    """The k of the curves: powers of two, the number of samples, and the reported one."""
    return tuple(sorted({*powers_up_to(config.evaluation.curve_samples), config.eval_k}))


def make_study(config: ConfigDict) -> Study:
    """Lays out the study of a config that has been checked.

    Seed s starts from the same policy and meets the same mazes whatever the method, so differences
    between methods are paired.
    """
    programs = _Programs(config)
    held_out = jax.jit(programs.held_out)
    return Study(
        programs.environment,
        {method.label: jnp.int32(number) for number, method in enumerate(read_methods(config))},
        held_out(_VALIDATION),
        held_out(_TEST),
        jax.jit(jax.vmap(programs.init)),
        jax.jit(
            jax.vmap(_make_advance(config, programs), in_axes=(None, 0, 0, 0)), donate_argnums=3
        ),
        # One seed after the other: hundreds of thousands of episodes at once would not fit.
        jax.jit(_over_seeds(programs.evaluate)),
        jax.jit(_over_seeds(programs.curves)),
        jax.jit(programs.sample),
    )


class _Programs:
    """What is computed with the policy of one seed in the environment of a config, not compiled."""

    def __init__(self, config: ConfigDict):
        self.environment = make_environment(config.task)
        self.make_instances = jax.vmap(self.environment.make_instance)
        self.graph = nnx.graphdef(
            nnx.eval_shape(lambda: _make_policy(config, self.environment, jax.random.key(0)))
        )
        self._config = config

    def init(self, key: jax.Array) -> training.TrainState:
        policy = _make_policy(self._config, self.environment, jax.random.fold_in(key, _POLICY))
        return training.init_state(nnx.state(policy), _make_optimizer(self._config, 0.0))

    def run(self, params: nnx.State, instances: Any, key: jax.Array, count: int) -> Trajectory:
        """Episodes `[T, M, count]`; extras are log-probabilities and entropies of the policy."""
        policy = nnx.merge(self.graph, params)

        def act(key: jax.Array, observation: Observation) -> tuple[jax.Array, Any]:
            actions = policy.sample(key, observation)
            return actions, (policy.log_prob(observation, actions), policy.entropy(observation))

        return rollout(self.environment, act, instances, key, count)

    def evaluate(self, instances: Any, seed_key: jax.Array, state: training.TrainState) -> Metrics:
        key = jax.random.fold_in(jax.random.fold_in(seed_key, _EVALUATE), state.step)
        episodes = self.run(state.params, instances, key, self._config.evaluation.samples)
        returns = episodes.returns
        return {
            "max_at_k": jnp.mean(max_at_k(returns, self._config.eval_k)),
            "mean_return": jnp.mean(returns),
            "success": jnp.mean(self._solved(returns, instances)),
            "entropy": losses.masked_mean(episodes.extras[1], where=episodes.mask),
        }

    def curves(self, instances: Any, seed_key: jax.Array, state: training.TrainState) -> Metrics:
        key = jax.random.fold_in(jax.random.fold_in(seed_key, _EVALUATE), state.step)
        # Another key than that of `evaluate`, whose samples are fewer.
        key = jax.random.fold_in(key, 1)
        count = self._config.evaluation.curve_samples
        returns = self.run(state.params, instances, key, count).returns
        correct = self._solved(returns, instances)
        ks = curve_ks(self._config)
        return {
            "max_at_k": jnp.stack([jnp.mean(max_at_k(returns, k)) for k in ks]),
            "pass_at_k": jnp.stack([jnp.mean(pass_at_k(correct, k)) for k in ks]),
        }

    def sample(self, instance: Any, key: jax.Array, state: training.TrainState) -> Trajectory:
        one = jax.tree.map(lambda x: x[None], instance)
        return self.run(state.params, one, key, self._config.group_size)

    def held_out(self, phase: ArrayLike) -> Any:
        """Mazes to evaluate on, the same for all seeds."""
        key = jax.random.fold_in(jax.random.key(self._config.seed), phase)
        return self.make_instances(jax.random.split(key, self._config.evaluation.mazes))

    def _solved(self, returns: jax.Array, instances: Any) -> jax.Array:
        """Which episodes `[M, N]` got all there is, or anything where the optimum is not known."""
        best = jax.vmap(self.environment.optimal_return)(instances)
        return returns > 0 if best is None else returns >= best[:, None]


def _make_advance(
    config: ConfigDict, programs: _Programs
) -> Callable[[jax.Array, Settings, jax.Array, training.TrainState], training.TrainState]:
    """(method, settings, key, state) to the state of one seed `evaluate_every` updates later."""
    advantages = [method.bind(config.updates) for method in read_methods(config)]

    def loss(
        params: nnx.State, episodes: Trajectory, weights: jax.Array, entropy: jax.Array
    ) -> jax.Array:
        policy = nnx.merge(programs.graph, params)
        return episode_loss(policy, episodes, weights, entropy, kind=config.loss)

    def advance(
        method: jax.Array, settings: Settings, key: jax.Array, state: training.TrainState
    ) -> training.TrainState:
        optimizer = _make_optimizer(config, settings.learning_rate)
        updates_key = jax.random.fold_in(key, _UPDATES)
        steps = config.epochs

        def update(state: training.TrainState, _: None) -> tuple[training.TrainState, None]:
            number = state.step // steps
            maze_key, run_key = jax.random.split(jax.random.fold_in(updates_key, number))
            instances = programs.make_instances(jax.random.split(maze_key, config.mazes))
            episodes = programs.run(state.params, instances, run_key, config.group_size)
            # A switch, so that all that the estimators share is compiled once.
            weights = jax.lax.switch(method, advantages, episodes.returns, number)

            def epoch(state: training.TrainState, _: None) -> tuple[training.TrainState, None]:
                gradients = jax.grad(loss)(state.params, episodes, weights, settings.entropy)
                return training.apply_gradients(state, gradients, optimizer), None

            return jax.lax.scan(epoch, state, length=steps)[0], None

        return jax.lax.scan(update, state, length=config.evaluate_every)[0]

    return advance


def _make_policy(config: ConfigDict, environment: Environment, key: jax.Array) -> GridPolicy:
    def observation() -> Observation:
        return environment.reset(environment.make_instance(jax.random.key(0)))[0]

    return GridPolicy(
        jax.eval_shape(observation),
        environment.num_actions,
        kind=config.policy.kind,
        hidden=tuple(config.policy.hidden),
        rngs=nnx.Rngs(key),
    )


def _make_optimizer(
    config: ConfigDict, learning_rate: jax.Array | float
) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.max_gradient_norm)
    return optax.chain(clip, optax.adam(learning_rate))


def episode_loss(
    policy: GridPolicy,
    episodes: Trajectory,
    advantages: jax.Array,
    entropy: ArrayLike,
    *,
    kind: str,
) -> jax.Array:
    """Loss of whole episodes, less their entropy bonus.

        score_function   -1/(M N) sum_i A_i sum_t log pi(a_it | o_it)
        clipped_ratio    the same with a clipped importance ratio for each step
        bonus            entropy/(M N) sum_i sum_t H(pi(. | o_it))

    Steps after the end of an episode count nowhere. The bonus is for the steps that were taken: no
    gradient leads to where there is more of it.

    Args:
      policy: What is trained.
      episodes: `[T, M, N]`; the first of the extras are the log-probabilities of the actions under
        the policy that took them.
      advantages: `[M, N]`.
      entropy: Coefficient of the bonus.
      kind: One of `LOSSES`.

    Returns:
      A scalar to be minimized.
    """
    logits = policy.logits(episodes.observations)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), episodes.actions[..., None], axis=-1)[
        ..., 0
    ]
    # Steps last: an episode is a sequence of actions.
    log_probs, behavior, entropies, mask = (
        jnp.moveaxis(x, 0, -1)
        for x in (chosen, episodes.extras[0], losses.entropy(logits), episodes.mask)
    )
    if kind == "score_function":
        value = losses.token_score_function_loss(log_probs, advantages, where=mask)
    else:
        value = losses.token_clipped_ratio_loss(log_probs, behavior, advantages, where=mask)
    return value - entropy * losses.reduce_tokens(entropies, where=mask)


def run_keys(config: ConfigDict) -> jax.Array:
    """Keys `[S]` of the policies that are reported on, the same for every method."""
    root = jax.random.fold_in(jax.random.key(config.seed), _TRAIN)
    return parallel.spread_runs(jax.random.split(root, config.seeds))


def sweep_keys(config: ConfigDict) -> jax.Array:
    """Keys of the policies of a sweep: for each learning rate the same seeds, not `run_keys`."""
    root = jax.random.fold_in(jax.random.key(config.seed), _SWEEP)
    seeds = jax.random.split(root, config.sweep.seeds)
    return parallel.spread_runs(jnp.tile(seeds, len(config.sweep.learning_rates)))


def sweep_settings(config: ConfigDict) -> dict[tuple[str, float], Settings]:
    """What a sweep tries by method and entropy coefficient: each learning rate with every seed."""
    return {
        (method.label, value): make_settings(
            np.repeat(_rates(config, method), config.sweep.seeds), value
        )
        for method in read_methods(config)
        for value in _coefficients(config, method)
        if config.sweep.updates
    }


def make_settings(learning_rates: Sequence[float] | np.ndarray, entropy: float) -> Settings:
    """Settings of policies that share their entropy coefficient."""
    rates = jnp.asarray(learning_rates, jnp.float32)
    return Settings(rates, jnp.full_like(rates, entropy))


def best_settings(
    config: ConfigDict, history: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """For each method the learning rate and entropy coefficient with the largest mean score.

    Args:
      config: The study's config.
      history: What was logged. Rows of the sweep hold the `method`, its `entropy_coefficient` and
        the `scores` `[L, seeds]`, max@K on the validation mazes for each learning rate. A setting
        with a score that is not finite is never best. Without sweep there is but one setting.

    Raises:
      ValueError: If no setting of a method has finite scores.
    """
    best = {}
    for method in read_methods(config):
        name, rates = method.label, _rates(config, method)
        tried = [row for row in history if row["phase"] == "sweep" and row["method"] == name]
        settings = [
            (float(np.mean(scores)), rate, row["entropy_coefficient"])
            for row in tried
            for rate, scores in zip(rates, row["scores"], strict=True)
            if np.all(np.isfinite(scores))
        ]
        if settings:
            _, *chosen = max(settings, key=lambda setting: setting[0])
            best[name] = tuple(chosen)
        elif tried:
            raise ValueError(
                f"{name}: every setting of the sweep led to a score that is not finite"
            )
        else:
            best[name] = (rates[0], _coefficients(config, method)[0])
    return best


def _rates(config: ConfigDict, method: Method) -> tuple[float, ...]:
    """Learning rates to try, as many for each method: they train side by side in one program."""
    if method.learning_rate is None:
        return config.sweep.learning_rates
    return (method.learning_rate,) * len(config.sweep.learning_rates)


def _coefficients(config: ConfigDict, method: Method) -> tuple[float, ...]:
    value = method.extra.get("entropy", 0.0)
    return config.sweep.entropy_coefficients if isinstance(value, str) else (value,)


def summarize(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """Means over seeds and their standard errors, as `name` and `name_sem`."""
    figures: dict[str, float] = {}
    for name, values in metrics.items():
        value, error = moments.mean(values)
        figures |= {name: float(value), f"{name}_sem": float(error)}
    return figures


def summarize_curves(curves: Metrics, ks: Sequence[int]) -> dict[str, float]:
    """As `summarize`, with a figure `max@k` and `pass@k` for each k."""
    flat: Metrics = {}
    for name, label in (("max_at_k", "max"), ("pass_at_k", "pass")):
        flat |= {f"{label}@{k}": curves[name][:, i] for i, k in enumerate(ks)}
    return summarize(flat)


def make_table(
    config: ConfigDict,
    curves: Mapping[str, Metrics],
    settings: Mapping[str, tuple[float, float]],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """A row for each policy: its settings, its curves at 1, K and their end, its last entropy.

    Args:
      config: The study's config.
      curves: By name, `[S, len(ks)]`; a policy without settings is one that was not trained.
      settings: Learning rate and entropy coefficient by method.
      history: The rows that were logged in training.

    Returns:
      Figures by name. Where MaxPO is among the methods, so is the difference to its max@K, seed by
      seed: they share their start and their mazes, so it is known better than either.
    """
    ks = curve_ks(config)
    at_k = {name: curve["max_at_k"][:, ks.index(config.eval_k)] for name, curve in curves.items()}
    minus = f"max@{config.eval_k} minus maxpo"
    maxpo = next((name for name in curves if name.split()[0] == "maxpo"), None)
    last = {row["method"]: row for row in history}
    table: dict[str, dict[str, Any]] = {}
    for name, curve in curves.items():
        figures = summarize_curves(curve, ks)
        if maxpo is not None:
            figures |= summarize({minus: at_k[name] - at_k[maxpo]})
        if name in last:
            figures |= {key: last[name][key] for key in ("entropy", "entropy_sem")}
        columns = [f"{label}@{k}" for label in ("max", "pass") for k in _ends(config)]
        columns.insert(2, minus)
        row: dict[str, Any] = dict(
            zip(("learning rate", "bonus"), settings.get(name, (None, None)), strict=True)
        )
        for column in (*columns, "entropy"):
            if column in figures:
                row |= {column: figures[column], f"{column}_sem": figures[f"{column}_sem"]}
        table[name] = row
    return table


def _ends(config: ConfigDict) -> list[int]:
    """The k of a table: 1, the reported one and the last."""
    ks = curve_ks(config)
    return sorted({ks[0], config.eval_k, ks[-1]})


def _over_seeds(function: Callable[..., Metrics]) -> Callable[..., Metrics]:
    def mapped(instances: Any, keys: jax.Array, states: training.TrainState) -> Metrics:
        return jax.lax.map(lambda one: function(instances, *one), (keys, states))

    return mapped


def _field(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
