"""One step of post-training: log-probabilities -> loss -> gradient -> optax, compiled once.

A batch is cut into `minibatches`, each an optimizer step, and these into `micro_batches`, whose
gradients add up to exactly that of the minibatch: the losses are means, so each micro-batch counts
by its share of the minibatch's denominator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from maxpo import losses, parallel, training
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.token_log_probs import TokenLogProbs, completion_log_probs
from maxpo.lm.training.optimizer import make_optimizer, warmed_up

Metrics = dict[str, jax.Array]


class Batch(NamedTuple):
    """P groups of N completions, with what the loss needs.

    Attributes:
      prompts: `[P, ...]`.
      completions: `[P, N, T]`, with the log-probabilities they were sampled with.
      advantages: `[P, N]`.
      where: `[P, N]` boolean, True at samples that count.
      reference_log_probs: `[P, N, T]` under the frozen policy; None without a KL penalty.
    """

    prompts: Prompts
    completions: Completions
    advantages: jax.Array
    where: jax.Array
    reference_log_probs: jax.Array | None = None


class Counts(NamedTuple):
    """Denominators of the means: kept samples that have tokens, and their tokens."""

    samples: jax.Array
    tokens: jax.Array


def make_update(
    graph: nnx.GraphDef, settings: ConfigDict, layout: Callable[[Any], Any] = lambda state: None
) -> Callable[
    [training.TrainState, Batch, jax.Array, jax.Array], tuple[training.TrainState, Metrics]
]:
    """The compiled update.

    Args:
      graph: The policy's structure.
      settings: The `rl` of a config.
      layout: Where a state lies on a mesh, as `parallel.layout`; each update leaves it there.

    Returns:
      (state, batch, learning rate, key) -> (state, metrics). The state is donated: its arrays are
      gone after the call. The key shuffles the groups into minibatches, anew in each epoch.
    """

    @partial(jax.jit, donate_argnums=0)
    def update(
        state: training.TrainState, batch: Batch, learning_rate: jax.Array, key: jax.Array
    ) -> tuple[training.TrainState, Metrics]:
        def step(
            state: training.TrainState, minibatch: Batch
        ) -> tuple[training.TrainState, Metrics]:
            gradients, metrics = accumulated_gradient(
                partial(loss_and_metrics, graph, settings),
                state.params,
                minibatch,
                settings.micro_batches,
            )
            metrics["gradient_norm"] = optax.tree.norm(gradients)
            rate = warmed_up(learning_rate, state.step, settings.warmup_steps)
            optimizer = make_optimizer(settings, rate)
            state = training.apply_gradients(state, gradients, optimizer)
            return parallel.constrain_to(state, layout(state)), metrics

        def step_with(
            state: training.TrainState, groups: jax.Array
        ) -> tuple[training.TrainState, Metrics]:
            return step(state, parallel.constrain_batch(jax.tree.map(lambda x: x[groups], batch)))

        P = batch.advantages.shape[0]
        if settings.epochs * settings.minibatches == 1:
            return step(state, batch)
        keys = jax.random.split(key, settings.epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, P))(keys)
        groups = order.reshape(settings.epochs * settings.minibatches, -1)
        state, metrics = jax.lax.scan(step_with, state, groups)
        # Once more: what a loop returns need not lie where its body left it.
        state = parallel.constrain_to(state, layout(state))
        return state, jax.tree.map(jnp.mean, metrics)

    return update


def make_reference(
    graph: nnx.GraphDef, settings: ConfigDict
) -> Callable[[nnx.State, Prompts, Completions], jax.Array]:
    """Compiled log-probabilities `[P, N, T]` under frozen parameters, in micro-batches."""
    pieces = settings.minibatches * settings.micro_batches

    @jax.jit
    def reference(params: nnx.State, prompts: Prompts, completions: Completions) -> jax.Array:
        def log_probs(piece: tuple[Prompts, Completions]) -> jax.Array:
            return _log_probs(graph, settings, params, *parallel.constrain_batch(piece)).log_probs

        cut = jax.tree.map(lambda x: _cut(x, pieces), (prompts, completions))
        return jax.lax.map(log_probs, cut).reshape(completions.tokens.shape)

    return reference


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
    graph: nnx.GraphDef, settings: ConfigDict, params: nnx.State, micro: Batch, whole: Counts
) -> tuple[jax.Array, Metrics]:
    """A micro-batch's part of the loss and of the metrics of the batch it is cut from."""
    tokens = micro.completions
    kept = tokens.mask & micro.where[..., None]
    counts = _counts(micro)
    of_samples = counts.samples / jnp.maximum(whole.samples, 1)
    of_tokens = counts.tokens / jnp.maximum(whole.tokens, 1)

    policy = _log_probs(graph, settings, params, micro.prompts, tokens)
    level = _Level(settings, kept)
    log_probs, behavior = level.scores(policy.log_probs), level.scores(tokens.log_probs)
    share = of_tokens if settings.loss_aggregation == "token" else of_samples
    loss = share * _policy_loss(settings, level, log_probs, behavior, micro.advantages)

    entropy = losses.masked_mean(policy.entropy, where=kept)
    if settings.entropy_coefficient:  # 0 times a diagnostic that is not finite would be NaN.
        loss -= of_tokens * settings.entropy_coefficient * entropy
    diagnostics = losses.ratio_diagnostics(
        log_probs,
        behavior,
        micro.advantages,
        **_clip(settings),
        where=level.where,
    )
    of_ratios = of_samples if settings.importance_level == "sequence" else of_tokens
    metrics = {
        "entropy": of_tokens * entropy,
        "kl_to_sampling_policy": of_ratios * diagnostics.approximate_kl,
    }
    if settings.loss == "clipped_ratio":
        metrics["clip_fraction"] = of_ratios * diagnostics.clip_fraction
    if micro.reference_log_probs is not None:
        reference = level.scores(micro.reference_log_probs)
        penalty = losses.kl_penalty(
            log_probs, reference, estimator=settings.kl_estimator, where=level.where
        )
        loss += of_samples * settings.kl_coefficient * level.mean_of_sums(penalty)
        drift = losses.kl_penalty(
            policy.log_probs, micro.reference_log_probs, estimator="k3", where=kept
        )
        metrics["kl_to_reference"] = of_samples * losses.reduce_tokens(drift, where=kept)
    return loss, {"loss": loss, **jax.lax.stop_gradient(metrics)}


class _Level:
    """Tokens or whole sequences, as what has one ratio, one penalty and one term in the loss."""

    def __init__(self, settings: ConfigDict, kept: jax.Array):
        self.tokens = settings.importance_level == "token"
        self._kept = kept
        self._normalized = settings.loss_aggregation == "sequence"
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
    settings: ConfigDict,
    level: _Level,
    log_probs: jax.Array,
    behavior: jax.Array,
    advantages: jax.Array,
) -> jax.Array:
    clip = _clip(settings)
    if level.tokens:
        how = {
            "loss_aggregation": settings.loss_aggregation,
            "length": settings.length,
            "where": level.where,
        }
        if settings.loss == "score_function":
            return losses.token_score_function_loss(log_probs, advantages, **how)
        return losses.token_clipped_ratio_loss(log_probs, behavior, advantages, **clip, **how)
    if settings.loss == "score_function":
        return losses.score_function_loss(log_probs, advantages, where=level.where)
    return losses.clipped_ratio_loss(log_probs, behavior, advantages, **clip, where=level.where)


def _clip(settings: ConfigDict) -> dict[str, Any]:
    return {
        "clip_low": settings.clip_low,
        "clip_high": settings.clip_high,
        "clip_dual": settings.clip_dual or None,
    }


def _log_probs(
    graph: nnx.GraphDef,
    settings: ConfigDict,
    params: nnx.State,
    prompts: Prompts,
    completions: Completions,
) -> TokenLogProbs:
    """Of the distribution that was sampled from: a temperature other than 1 is a part of it."""
    return completion_log_probs(
        nnx.merge(graph, params),
        prompts,
        completions.tokens,
        completions.mask,
        temperature=settings.temperature,
    )


def _counts(batch: Batch) -> Counts:
    kept = batch.completions.mask & batch.where[..., None]
    counts = (jnp.sum(x, dtype=jnp.int32) for x in (kept.any(axis=-1), kept))
    return Counts(*(count.astype(jnp.float32) for count in counts))


def _cut(array: jax.Array, pieces: int) -> jax.Array:
    return array.reshape(pieces, -1, *array.shape[1:])
