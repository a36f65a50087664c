"""One step of training: advantages -> log-probabilities -> loss -> gradient -> optax.

A batch is cut into `minibatches`, each an optimizer step, and these into `micro_batches`, whose
gradients add up to exactly that of the minibatch: the losses are means, so each micro-batch counts
by its share of the minibatch's denominator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from maxpo import losses, parallel, training
from maxpo.lm.model.policy import NOTHING_FROZEN, Scored
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.token_log_probs import TokenLogProbs, completion_log_probs
from maxpo.lm.training.optimizer import warmed_up
from maxpo.lm.training.packing import shuffled

__all__ = [
    "Advantages",
    "Batch",
    "Counts",
    "MakeOptimizer",
    "Reference",
    "Update",
    "accumulated_gradient",
    "loss_and_metrics",
    "make_reference",
    "make_update",
]

Metrics = dict[str, jax.Array]

Advantages = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
"""(rewards `[P, N]`, valid samples, updates done, number of the method, success rates `[P]` of past
steps or None) to advantages `[P, N]`."""

MakeOptimizer = Callable[[jax.Array], optax.GradientTransformation]
"""Learning rate of an optimizer step, which may be traced, to the optimizer."""


class Batch(NamedTuple):
    """P groups of N completions, with what the loss needs.

    Attributes:
      prompts: `[P, ...]`.
      completions: `[P, N, T]`, with the log-probabilities they were sampled with.
      rewards: `[P, N]`.
      valid: `[P, N]` boolean, True at samples to compute advantages from.
      where: `[P, N]` boolean, True at samples that count in the loss.
      reference_log_probs: `[P, N, T]` under the frozen policy; None without a KL penalty.
      advantages: `[P, N]`; None until the update has computed them from the rewards.
      success_rate: `[P]`, of each problem in past steps; None where no method adapts its k.
    """

    prompts: Prompts
    completions: Completions
    rewards: jax.Array
    valid: jax.Array
    where: jax.Array
    reference_log_probs: jax.Array | None = None
    advantages: jax.Array | None = None
    success_rate: jax.Array | None = None


class Counts(NamedTuple):
    """Denominators of the means: kept samples that have tokens, and their tokens."""

    samples: jax.Array
    tokens: jax.Array


class Update(Protocol):
    """The compiled update of `make_update`."""

    def __call__(
        self,
        state: training.TrainState,
        batch: Batch,
        key: jax.Array,
        *,
        step: ArrayLike,
        learning_rate: ArrayLike,
        method: ArrayLike = 0,
        order: ArrayLike | None = None,
        room: int | None = None,
    ) -> tuple[training.TrainState, Metrics, jax.Array]:
        """One update.

        Args:
          state: Donated: its arrays are gone after the call.
          batch: P groups.
          key: Shuffles the groups into minibatches, in another order in each epoch.
          step: Number of updates that are done, for schedules of k.
          learning_rate: The optimizer's learning rate, before its warm-up.
          method: Which of the methods' advantages to use.
          order: The groups of each optimizer step, see `Packing`. None: as the key shuffles them.
          room: See `Packing`; a program is compiled for each.

        Returns:
          The next state, metrics, and the advantages `[P, N]`.
        """


def make_update(
    graph: nnx.GraphDef,
    rl: ConfigDict,
    advantages: Advantages,
    *,
    optimizer: MakeOptimizer,
    layout: Callable[[Any], Any] = lambda state: None,
    frozen: nnx.State = NOTHING_FROZEN,
) -> Update:
    """The compiled update, one program for all methods, learning rates and steps.

    Args:
      graph: The policy's structure.
      rl: The `rl` of a config.
      advantages: The function that computes them.
      optimizer: Makes the optimizer of a learning rate after its warm-up, see `warmed_up`.
      layout: Where a state lies on a mesh; each update leaves it there.
      frozen: What the policy has beside trained parameters.
    """

    @partial(jax.jit, donate_argnums=1, static_argnames="room")
    def update(
        frozen: nnx.State,
        state: training.TrainState,
        batch: Batch,
        key: jax.Array,
        *,
        step: jax.Array,
        learning_rate: jax.Array,
        method: jax.Array | int = 0,
        order: jax.Array | None = None,
        room: int | None = None,
    ) -> tuple[training.TrainState, Metrics, jax.Array]:
        _check_batch(batch)
        # The barrier keeps their rounding what it is when they are computed alone.
        found = jax.lax.optimization_barrier(
            advantages(
                batch.rewards,
                batch.valid,
                jnp.asarray(step),
                jnp.asarray(method),
                batch.success_rate,
            )
        )
        batch = batch._replace(advantages=found)

        def one_step(
            state: training.TrainState, minibatch: Batch
        ) -> tuple[training.TrainState, Metrics]:
            loss = partial(loss_and_metrics, graph, rl, frozen=frozen, room=room)
            gradients, metrics = accumulated_gradient(
                loss, state.params, minibatch, rl.micro_batches
            )
            metrics["gradient_norm"] = optax.tree.norm(gradients)
            rate = warmed_up(jnp.asarray(learning_rate), state.step, rl.warmup_steps)
            state = training.apply_gradients(state, gradients, optimizer(rate))
            return parallel.constrain_to(state, layout(state)), metrics

        def step_with(
            state: training.TrainState, groups: jax.Array
        ) -> tuple[training.TrainState, Metrics]:
            minibatch = parallel.constrain_batch(jax.tree.map(lambda x: x[groups], batch))
            return one_step(state, minibatch)

        if order is None and rl.epochs * rl.minibatches == 1:
            return *one_step(state, batch), found
        if order is None:
            P = batch.rewards.shape[0]
            order = shuffled(key, P, epochs=rl.epochs, minibatches=rl.minibatches)
        state, metrics = jax.lax.scan(step_with, state, order)
        # Once more: what a loop returns need not lie where its body left it.
        state = parallel.constrain_to(state, layout(state))
        return state, jax.tree.map(jnp.mean, metrics), found

    return partial(update, frozen)


def _check_batch(batch: Batch) -> None:
    """The contract of a batch; shapes and dtypes are known while tracing.

    Raises:
      AssertionError: If it is broken, naming the arrays.
    """
    P, N, _ = batch.completions.tokens.shape
    of_samples = {name: getattr(batch, name) for name in ("rewards", "valid", "where")}
    for name, array in of_samples.items():
        chex.assert_shape(array, (P, N), custom_message=f"update: {name} of P groups of N samples")
    for name in ("valid", "where"):
        chex.assert_type(of_samples[name], bool, custom_message=f"update: {name} is a mask")
    chex.assert_equal_shape(batch.completions, custom_message="update: arrays of completions")
    chex.assert_axis_dimension(
        batch.prompts.tokens, 0, P, custom_message="update: a prompt for each group"
    )


class Reference(Protocol):
    """The compiled log-probabilities of `make_reference`."""

    def __call__(
        self,
        params: nnx.State,
        prompts: Prompts,
        completions: Completions,
        *,
        order: ArrayLike | None = None,
        room: int | None = None,
    ) -> jax.Array:
        """Log-probabilities `[P, N, T]` under frozen parameters.

        Args:
          params: The parameters.
          prompts: P prompts.
          completions: `[P, N, T]`.
          order: Of all groups, to be cut into micro-batches; None: as they come.
          room: As for an `Update`.
        """


def make_reference(
    graph: nnx.GraphDef, rl: ConfigDict, *, frozen: nnx.State = NOTHING_FROZEN
) -> Reference:
    """Compiled log-probabilities under frozen parameters, in the update's micro-batches."""
    pieces = rl.minibatches * rl.micro_batches

    @partial(jax.jit, static_argnames="room")
    def reference(
        frozen: nnx.State,
        params: nnx.State,
        prompts: Prompts,
        completions: Completions,
        *,
        order: jax.Array | None = None,
        room: int | None = None,
    ) -> jax.Array:
        policy = nnx.merge(graph, params, frozen)

        def log_probs(piece: tuple[Prompts, Completions]) -> jax.Array:
            return _log_probs(policy, rl, *parallel.constrain_batch(piece), room).log_probs

        batch = (prompts, completions)
        if order is not None:
            batch = jax.tree.map(lambda x: x[order], batch)
        cut = jax.tree.map(lambda x: _cut(x, pieces), batch)
        found = jax.lax.map(log_probs, cut).reshape(completions.tokens.shape)
        return found if order is None else jnp.zeros_like(found).at[order].set(found)

    return partial(reference, frozen)


def accumulated_gradient(
    loss: Callable[[nnx.State, Batch, Counts], tuple[jax.Array, Metrics]],
    params: nnx.State,
    batch: Batch,
    micro_batches: int,
) -> tuple[nnx.State, Metrics]:
    """Gradient and metrics of a whole batch, one micro-batch in memory at a time.

    Args:
      loss: (params, micro-batch, counts of the whole batch) -> the micro-batch's part of the whole
        batch's loss, and its part of the metrics.
      params: What to differentiate by.
      batch: The groups.
      micro_batches: A divisor of their number.
    """
    counts = _counts(batch)
    gradient = jax.grad(loss, has_aux=True)
    if micro_batches == 1:
        return gradient(params, batch, counts)

    def add(
        total: tuple[nnx.State, Metrics], micro: Batch
    ) -> tuple[tuple[nnx.State, Metrics], None]:
        found = gradient(params, parallel.constrain_batch(micro), counts)
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, found), None

    cut = jax.tree.map(lambda x: _cut(x, micro_batches), batch)
    like = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], cut), counts)
    # In float32 at least: many small bfloat16 terms would be lost in their sum.
    with jax.numpy_dtype_promotion("standard"):
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like
        )
    total, _ = jax.lax.scan(add, zeros, cut)
    return jax.tree.map(lambda x, y: x.astype(y.dtype), total, like)


def loss_and_metrics(
    graph: nnx.GraphDef,
    rl: ConfigDict,
    params: nnx.State,
    micro: Batch,
    whole: Counts,
    *,
    frozen: nnx.State = NOTHING_FROZEN,
    room: int | None = None,
) -> tuple[jax.Array, Metrics]:
    """A micro-batch's part of the loss and of the metrics of the batch it is cut from."""
    assert micro.advantages is not None  # The update has computed them.
    tokens = micro.completions
    kept = tokens.mask & micro.where[..., None]
    counts = _counts(micro)
    of_samples = counts.samples / jnp.maximum(whole.samples, 1)
    of_tokens = counts.tokens / jnp.maximum(whole.tokens, 1)

    # Samples that do not count need no room.
    kept_tokens = tokens._replace(mask=kept)
    policy = _log_probs(nnx.merge(graph, params, frozen), rl, micro.prompts, kept_tokens, room)
    level = _Level(rl, kept)
    log_probs, behavior = level.scores(policy.log_probs), level.scores(tokens.log_probs)
    share = of_tokens if rl.loss_aggregation == "token" else of_samples
    loss = share * _policy_loss(rl, level, log_probs, behavior, micro.advantages)

    entropy = losses.masked_mean(policy.entropy, where=kept)
    if rl.entropy_coefficient:  # 0 times a diagnostic that is not finite would be NaN.
        loss -= of_tokens * rl.entropy_coefficient * entropy
    diagnostics = losses.ratio_diagnostics(
        log_probs,
        behavior,
        micro.advantages,
        **_clip(rl),
        where=level.where,
    )
    of_ratios = of_samples if rl.importance_level == "sequence" else of_tokens
    metrics = {
        "entropy": of_tokens * entropy,
        "kl_to_sampling_policy": of_ratios * diagnostics.approximate_kl,
    }
    if rl.loss == "clipped_ratio":
        metrics["clip_fraction"] = of_ratios * diagnostics.clip_fraction
    if micro.reference_log_probs is not None:
        reference = level.scores(micro.reference_log_probs)
        penalty = losses.kl_penalty(
            log_probs, reference, estimator=rl.kl_estimator, where=level.where
        )
        loss += of_samples * rl.kl_coefficient * level.mean_of_sums(penalty)
        drift = losses.kl_penalty(
            policy.log_probs, micro.reference_log_probs, estimator="k3", where=kept
        )
        metrics["kl_to_reference"] = of_samples * losses.reduce_tokens(drift, where=kept)
    return loss, {"loss": loss, **jax.lax.stop_gradient(metrics)}


class _Level:
    """The units of the loss: tokens or sequences, each with a ratio, a penalty and a term."""

    def __init__(self, rl: ConfigDict, kept: jax.Array):
        self.tokens = rl.importance_level == "token"
        self._kept = kept
        self._normalized = rl.loss_aggregation == "sequence"
        self.where = kept if self.tokens else kept.any(axis=-1)

    def scores(self, log_probs: jax.Array) -> jax.Array:
        if self.tokens:
            return log_probs
        return losses.sequence_log_probs(
            log_probs, length_normalized=self._normalized, where=self._kept
        )

    def mean_of_sums(self, values: jax.Array) -> jax.Array:
        reduce = losses.reduce_tokens if self.tokens else losses.masked_mean
        return reduce(values, where=self.where)


def _policy_loss(
    rl: ConfigDict,
    level: _Level,
    log_probs: jax.Array,
    behavior: jax.Array,
    advantages: jax.Array,
) -> jax.Array:
    clip = _clip(rl)
    if level.tokens:
        how = {
            "loss_aggregation": rl.loss_aggregation,
            "length": rl.length,
            "where": level.where,
        }
        if rl.loss == "score_function":
            return losses.token_score_function_loss(log_probs, advantages, **how)
        return losses.token_clipped_ratio_loss(log_probs, behavior, advantages, **clip, **how)
    if rl.loss == "score_function":
        return losses.score_function_loss(log_probs, advantages, where=level.where)
    return losses.clipped_ratio_loss(log_probs, behavior, advantages, **clip, where=level.where)


def _clip(rl: ConfigDict) -> dict[str, Any]:
    return {
        "clip_low": rl.clip_low,
        "clip_high": rl.clip_high,
        "clip_dual": rl.clip_dual or None,
    }


def _log_probs(
    policy: Scored,
    rl: ConfigDict,
    prompts: Prompts,
    completions: Completions,
    room: int | None,
) -> TokenLogProbs:
    """Under the distribution that was sampled from, of which the temperature is a part."""
    return completion_log_probs(
        policy,
        prompts,
        completions.tokens,
        completions.mask,
        temperature=rl.temperature,
        room=room,
    )


def _counts(batch: Batch) -> Counts:
    kept = batch.completions.mask & batch.where[..., None]
    counts = (jnp.sum(x, dtype=jnp.int32) for x in (kept.any(axis=-1), kept))
    return Counts(*(count.astype(jnp.float32) for count in counts))


def _cut(array: jax.Array, pieces: int) -> jax.Array:
    return array.reshape(pieces, -1, *array.shape[1:])
