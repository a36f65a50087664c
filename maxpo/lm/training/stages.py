"""The warm start and each method after it, as runs of their own that any kill may interrupt."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel, runs, training
from maxpo.lm.tasks.verification import FAILURES, VerifierPool
from maxpo.lm.training import rollouts, sft, update
from maxpo.lm.training.batches import batch_of_step
from maxpo.lm.training.evaluation import curve, held_out_scores
from maxpo.lm.training.failures import FailureLog, marked
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.settings import Settings, make_model
from maxpo.methods import Method

SFT = "sft"

# Of one seed's key.
_INIT, _SAMPLE, _SHUFFLE, _EVALUATE = range(4)


class Programs(NamedTuple):
    """What is compiled, once for all stages, methods and seeds.

    Attributes:
      params: The policy's parameters before any training.
      learn: An update of the warm start.
      sample: Draws the groups of a batch of prompts to train on.
      sample_held_out: Draws those to evaluate.
      reference: Log-probabilities under frozen parameters.
      update: An update of post-training.
    """

    params: nnx.State
    learn: Callable[..., Any]
    sample: rollouts.Sample
    sample_held_out: rollouts.Sample
    reference: Callable[..., jax.Array]
    update: Callable[..., Any]


def make_programs(settings: Settings) -> Programs:
    """Everything that is compiled at its first call."""
    config = settings.config
    graph, params = make_model(settings, _key(jax.random.key(config.seed), _INIT, 0))
    params = parallel.shard(params, _layout(config, params))
    return Programs(
        params,
        sft.make_update(graph, config.sft, partial(_layout, config)),
        rollouts.make_sample(
            graph,
            settings,
            group_size=config.rl.group_size,
            temperature=config.rl.temperature,
        ),
        rollouts.make_sample(
            graph,
            settings,
            group_size=config.evaluation.samples,
            temperature=config.evaluation.temperature,
        ),
        update.make_reference(graph, config.rl),
        update.make_update(graph, config.rl, partial(_layout, config)),
    )


def fine_tune(
    settings: Settings,
    programs: Programs,
    pool: VerifierPool,
    folder: Path,
    failures: FailureLog,
) -> tuple[nnx.State, dict[str, Any]]:
    """Trains on answers; returns the parameters and the run's summary, as `post_train` does."""
    config = settings.config.sft
    with runs.Run(_config_of_sft(settings.config), folder, keep=1) as run:
        state = _initial_state(settings.config, programs.params, config)
        if run.finished:
            if config.steps:
                state, _ = run.last_state(state)
            return state.params, dict(run.summary or {})
        state, start = run.restore(state)
        timer = rollouts.Timer()
        for step in runs.steps(start, config.steps, unit="warm-up updates"):
            numbers = batch_of_step(
                settings.config.seed, step, config.batch_size, len(settings.train.problems)
            )
            prompts = settings.train.take(numbers).prompts
            assert settings.answers is not None
            tokens, mask = (array[numbers] for array in settings.answers)
            prompts, tokens, mask = parallel.shard_batch((prompts, tokens, mask))
            with timer("updating"):
                state, found = programs.learn(state, prompts, tokens, mask)
                # Fetched now and then only: the device need not wait for the host in between.
                log = step % config.log_every == 0 or step == config.steps
                found = jax.device_get(found) if log else found
            if log:
                runs.check_finite(step, found)
                run.log(step, found)
                run.log_timings(step, timer.seconds)
                timer = rollouts.Timer()
            if step % config.save_every == 0 or step == config.steps:
                run.save(step, state)
        seed = settings.config.seed
        summary = _evaluate(settings, programs, pool, state.params, seed, run, failures)
        return state.params, summary


def post_train(
    settings: Settings,
    programs: Programs,
    pool: VerifierPool,
    method: Method,
    seed: int,
    start_from: nnx.State,
    folder: Path,
    failures: FailureLog,
) -> dict[str, Any]:
    """Trains with one method from given parameters.

    Args:
      settings: Of the whole study.
      programs: Of `make_programs`.
      pool: Scores completions.
      method: Gives the advantages.
      seed: Of prompts and samples, the same for every method.
      start_from: Parameters of the warm start.
      folder: Of the run.
      failures: Reports failed verifications.

    Returns:
      The run's summary: "scores" `[P][n]` of held-out problems, NaN where the verification failed;
      "verified", how many samples were, in training and evaluation, and "failures" among them by
      kind.

    Raises:
      FloatingPointError: If the loss, its gradient, an advantage or a log-probability it is made of
        is not finite, naming the step and the prompt. Diagnostics may be anything.
      RuntimeError: If the verifier raised on every sample of a step.
    """
    config = settings.config
    rl = config.rl
    with runs.Run(_config_of_method(config, method, seed), folder, keep=1) as run:
        if run.finished:
            return dict(run.summary or {})
        state = _initial_state(config, start_from, rl)
        state, start = run.restore(state)
        learning_rate = jnp.float32(method.learning_rate or rl.learning_rate)
        advantages = jax.jit(
            lambda rewards, where, step: method.advantages(rewards, where, step, rl.steps)
        )
        key = jax.random.key(seed)
        for step in runs.steps(start, rl.steps):
            timer, began = rollouts.Timer(), time.perf_counter()
            groups = rollouts.collect(
                settings,
                programs.sample,
                pool,
                state.params,
                seed,
                step,
                _key(key, _SAMPLE, step),
                timer,
            )
            failures.note_step(step, groups.scores)
            with timer("updating"):
                where: Any = groups.where
                batch = update.Batch(
                    groups.problems.prompts,
                    groups.completions,
                    jax.device_get(advantages(groups.rewards, groups.valid, step - 1)),
                    where,
                )
                _check_groups(step, groups, batch)
                kept = np.abs(batch.advantages)[groups.where]
                batch = parallel.shard_batch(batch)
                if rl.kl_coefficient:
                    found = programs.reference(start_from, batch.prompts, batch.completions)
                    batch = batch._replace(reference_log_probs=found)
                shuffle = _key(key, _SHUFFLE, step)
                state, found = programs.update(state, batch, learning_rate, shuffle)
                found = jax.device_get(found)
            found["advantage_size"] = kept.mean() if kept.size else 0.0
            runs.check_finite(step, {name: found[name] for name in ("loss", "gradient_norm")})
            run.log(step, {**groups.metrics, **found})
            if step % rl.save_every == 0 or step == rl.steps:
                run.save(step, state)
            run.log_timings(step, _timings(timer, time.perf_counter() - began, groups))
        return _evaluate(settings, programs, pool, state.params, seed, run, failures)


def _evaluate(
    settings: Settings,
    programs: Programs,
    pool: VerifierPool,
    params: nnx.State,
    seed: int,
    run: runs.Run,
    failures: FailureLog,
) -> dict[str, Any]:
    """Ends a run with the scores of held-out problems."""
    key = _key(jax.random.key(seed), _EVALUATE, 0)
    found = held_out_scores(settings, programs.sample_held_out, pool, params, key, rollouts.Timer())
    failures.note(f"evaluation of {run.folder.name}", found)
    scores = marked(found)
    binary = settings.config.task.binary
    best = curve((settings.correct(scores) if binary else scores)[None], binary=binary).value
    row = {
        "run": run.folder.name,
        "mean reward": best[0],
        f"best of {scores.shape[1]}": best[-1],
        "correct": settings.correct(scores).mean(),
        "failed": np.isnan(scores).mean(),
    }
    # Those of training from what is logged: a restart has not seen the steps before it.
    steps = [line for line in runs.read_metrics(run.folder) if "sampled_groups" in line]
    group_size = settings.config.rl.group_size
    summary = {
        "scores": scores,
        "verified": scores.size + sum(line["sampled_groups"] for line in steps) * group_size,
        "failures": {
            kind: found.failures[kind] + sum(line[f"failed_{kind}"] for line in steps)
            for kind in FAILURES
        },
    }
    return run.finish(summary, table=[row])


def _initial_state(
    config: ConfigDict, params: nnx.State, settings: ConfigDict
) -> training.TrainState:
    # A copy: an update takes the arrays of its state for itself.
    params = jax.tree.map(jnp.copy, params)
    state = training.init_state(params, make_optimizer(settings, settings.learning_rate))
    return parallel.shard(state, _layout(config, state))


def _layout(config: ConfigDict, tree: Any) -> Any:
    return parallel.layout(tree, fully_sharded=config.mesh.fully_sharded)


def _check_groups(step: int, groups: rollouts.Groups, batch: update.Batch) -> None:
    """Raises FloatingPointError for the first prompt whose group is not finite."""
    for number, problem in enumerate(groups.problems.problems):
        of_prompt = {
            "log-probabilities": batch.completions.log_probs[number],
            "advantages": batch.advantages[number],
        }
        if not all(np.isfinite(values).all() for values in of_prompt.values()):
            runs.check_finite(
                step,
                {f"{name} of {problem.prompt!r}": values for name, values in of_prompt.items()},
            )


def _timings(timer: rollouts.Timer, seconds: float, groups: rollouts.Groups) -> dict[str, float]:
    """Seconds of a step and of its phases, the tokens of each, and both in relation.

    Verifying is what is left of it behind the sampling.
    """
    metrics, mask = groups.metrics, groups.completions.mask
    tokens = {
        "sampling": metrics["completion_length"] * metrics["sampled_groups"] * mask.shape[1],
        "updating": mask.sum(),
    }
    return {
        "seconds": seconds,
        **timer.seconds,
        **{f"share_{phase}": part / seconds for phase, part in timer.seconds.items()},
        **{f"{phase}_tokens": count for phase, count in tokens.items()},
        **{
            f"{phase}_tokens_per_second": count / timer.seconds[phase]
            for phase, count in tokens.items()
        },
    }


def _config_of_sft(config: ConfigDict) -> dict[str, Any]:
    """What the warm start depends on."""
    names = ("seed", "task", "tokenizer", "model", "sft", "evaluation", "verification")
    fields = config.to_dict()
    return {name: fields[name] for name in names} | {"max_new_tokens": config.rl.max_new_tokens}


def _config_of_method(config: ConfigDict, method: Method, seed: int) -> dict[str, Any]:
    """What the run of a method depends on: its warm start's config, and its own."""
    own = {"rl": config.rl.to_dict(), "method": method._asdict(), "rl_seed": seed}
    return _config_of_sft(config) | own


def _key(key: jax.Array, use: int, step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, use), step)
