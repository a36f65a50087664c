"""Groups of completions with their rewards, and which of them teach something."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import max_at_k, parallel, pass_at_k
from maxpo.lm.model.generation import generate
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.verification import Scores, VerifierPool
from maxpo.lm.training.batches import batch_of_step
from maxpo.lm.training.failures import marked
from maxpo.lm.training.settings import EncodedProblems, Settings

Sample = Callable[[nnx.State, Prompts, jax.Array], Completions]


class Rollouts(NamedTuple):
    """P groups of N completions, on the host.

    Attributes:
      problems: P problems with their prompts.
      completions: `[P, N, T]`.
      scores: What the verifier gave each of them.
    """

    problems: EncodedProblems
    completions: Completions
    scores: Scores


class Groups(NamedTuple):
    """What a step learns from, and what its metrics are about.

    Attributes:
      problems: P problems.
      completions: `[P, N, T]`.
      rewards: `[P, N]`, never NaN; see `Settings.rewards`.
      valid: `[P, N]`, samples to compute advantages from.
      where: `[P, N]`, samples that count in the loss: none of a dead group that is dropped.
      scores: Of all groups that were sampled, also those not kept.
      metrics: Of all these, too.
    """

    problems: EncodedProblems
    completions: Completions
    rewards: np.ndarray
    valid: np.ndarray
    where: np.ndarray
    scores: Scores
    metrics: dict[str, Any]


class Timer:
    """Seconds spent in named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time of a `with` block."""
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def make_sample(
    graph: nnx.GraphDef, settings: Settings, *, group_size: int, temperature: float
) -> Sample:
    """The compiled function that draws `group_size` completions of each prompt."""

    @jax.jit
    def sample(params: nnx.State, prompts: Prompts, key: jax.Array) -> Completions:
        return generate(
            nnx.merge(graph, params),
            prompts,
            group_size=group_size,
            max_new_tokens=settings.config.rl.max_new_tokens,
            temperature=temperature,
            eos_id=settings.tokenizer.eos_id,
            pad_id=settings.tokenizer.pad_id,
            key=key,
        )

    return sample


def sample_and_score(
    settings: Settings,
    sample: Sample,
    pool: VerifierPool,
    params: nnx.State,
    problems: EncodedProblems,
    key: jax.Array,
    *,
    batches: int,
    timer: Timer,
) -> Rollouts:
    """Draws a group for each problem and has it scored.

    While one batch is scored in other processes, the next one is sampled. On a pod each process has
    its share of the completions scored, and all get all scores.

    Args:
      settings: Of the run.
      sample: Compiled for P / batches prompts.
      pool: Scores completions.
      params: Of the policy.
      problems: P problems.
      key: PRNG key.
      batches: A divisor of P.
      timer: Gets the seconds of "sampling" and, behind it, "verifying".
    """
    numbers = np.split(np.arange(len(problems.problems)), batches)
    parts = [problems.take(part) for part in numbers]
    pending, completions = [], []

    def dispatch(batch: int) -> Completions:
        prompts = parallel.shard_batch(parts[batch].prompts)
        return sample(params, prompts, jax.random.fold_in(key, batch))

    with timer("sampling"):
        running = dispatch(0)
        for batch, part in enumerate(parts):
            current = running
            if batch + 1 < batches:
                # In the device's queue before the host waits: it goes on while this one is scored.
                running = dispatch(batch + 1)
            current = parallel.fetch(current)
            completions.append(current)
            mine = parallel.my_share(len(part.problems))
            texts = [
                [settings.tokenizer.decode(row[kept]) for row, kept in zip(*group, strict=True)]
                for group in zip(current.tokens[mine], current.mask[mine], strict=True)
            ]
            own = [part.problems[i] for i in mine]
            pending.append((own, texts, pool.submit(own, texts)))
    with timer("verifying"):
        scores = [
            _of_all_processes(_located(each.result(), own, texts), len(parts[0].problems))
            for own, texts, each in pending
        ]
    return Rollouts(problems, _joined(completions), _joined_scores(scores))


def collect(
    settings: Settings,
    sample: Sample,
    pool: VerifierPool,
    params: nnx.State,
    seed: int,
    step: int,
    key: jax.Array,
    timer: Timer,
) -> Groups:
    """The groups of a step.

    With `zero_variance_groups="oversample"` further rounds of P prompts are drawn until P groups
    are alive or `oversampling` rounds are done. Groups alive come first, in the order in which they
    were drawn; dead ones that fill up count for nothing.

    Args:
      settings: Of the run.
      sample: Compiled for a batch of prompts.
      pool: Scores completions.
      params: Of the policy.
      seed: Of the order of the problems.
      step: From 1. The problems depend on nothing but the seed and this.
      key: Of the step.
      timer: As in `sample_and_score`.
    """
    rl = settings.config.rl
    rounds = rl.oversampling if rl.zero_variance_groups == "oversample" else 1
    numbers = batch_of_step(seed, step, rl.prompts * rounds, len(settings.train.problems))
    drawn: list[Rollouts] = []
    alive = np.zeros(0, bool)
    for part in np.split(numbers, rounds):
        problems = settings.train.take(part)
        round_key = jax.random.fold_in(key, len(drawn))
        drawn.append(
            sample_and_score(
                settings,
                sample,
                pool,
                params,
                problems,
                round_key,
                batches=rl.sampling_batches,
                timer=timer,
            )
        )
        scores = drawn[-1].scores
        usable = _usable(rl, scores)
        alive = np.append(alive, is_alive(settings.rewards(marked(scores)), usable))
        if np.sum(alive) >= rl.prompts:
            break
    return _select(settings, drawn, numbers, alive)


def is_alive(rewards: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Whether the kept rewards of each group `[P, N]` differ: equal ones tell nothing apart."""
    highest = np.max(rewards, axis=-1, where=where, initial=-np.inf)
    lowest = np.min(rewards, axis=-1, where=where, initial=np.inf)
    return highest > lowest


def _select(
    settings: Settings, drawn: list[Rollouts], numbers: np.ndarray, alive: np.ndarray
) -> Groups:
    """Keeps P groups, those alive first, and describes all."""
    rl = settings.config.rl
    completions = _joined([rollouts.completions for rollouts in drawn])
    scores = _joined_scores([rollouts.scores for rollouts in drawn])
    rewards, valid = settings.rewards(marked(scores)), _usable(rl, scores)
    metrics = _metrics(settings, completions, scores, rewards, valid, alive)

    order = np.argsort(~alive, kind="stable")[: rl.prompts]
    if rl.zero_variance_groups != "oversample":
        order = np.arange(rl.prompts)
    where = valid if rl.zero_variance_groups == "keep" else valid & alive[:, None]
    return Groups(
        settings.train.take(numbers[order]),
        jax.tree.map(lambda array: array[order], completions),
        rewards[order],
        valid[order],
        where[order],
        scores,
        metrics,
    )


def _metrics(
    settings: Settings,
    completions: Completions,
    scores: Scores,
    rewards: np.ndarray,
    valid: np.ndarray,
    alive: np.ndarray,
) -> dict[str, Any]:
    correct = settings.correct(marked(scores))
    k = settings.config.rl.eval_k
    values = jax.device_get(_group_values(rewards, correct, k=k))
    lengths = completions.mask.sum(axis=-1)
    ended = np.any((completions.tokens == settings.tokenizer.eos_id) & completions.mask, axis=-1)
    return {
        # Of what advantages are computed from, and no number where there is nothing.
        "mean_reward": rewards[valid].mean() if valid.any() else np.nan,
        **values,
        "zero_variance_groups": 1 - alive.mean(),
        "sampled_groups": len(alive),
        "failed": 1 - scores.valid.mean(),
        **{f"failed_{kind}": count for kind, count in scores.failures.items()},
        "completion_length": lengths.mean(),
        "truncated": 1 - ended.mean(),
    }


@partial(jax.jit, static_argnames="k")
def _group_values(rewards: jax.Array, correct: jax.Array, *, k: int) -> dict[str, jax.Array]:
    """Of all samples: a failed one is one of the k that were drawn, and never the best of them."""
    return {
        "max_at_k": jnp.mean(max_at_k(rewards, k)),
        "pass_at_k": jnp.mean(pass_at_k(correct, k)),
    }


def _usable(rl: ConfigDict, scores: Scores) -> np.ndarray:
    """Samples to learn from: all of them where a failure counts as the lowest reward."""
    return scores.valid if rl.failures == "mask" else np.ones_like(scores.valid)


def _of_all_processes(mine: Scores, count: int) -> Scores:
    """The scores of `count` problems, of which each process has its share."""
    if jax.process_count() == 1:
        return mine
    shape = (count, mine.rewards.shape[1])
    rewards, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    share = parallel.my_share(count)
    rewards[share], valid[share] = mine.rewards, mine.valid
    sums = parallel.sum_over_processes((rewards, valid, mine.failures))
    return Scores(*sums, parallel.first_text(mine.message))


def _located(scores: Scores, problems: Sequence[Problem], texts: list[list[str]]) -> Scores:
    """The scores with the prompt and the completion that their message is about."""
    if not scores.message:
        return scores
    row, column = np.argwhere(~scores.valid)[0]
    prompt, completion = problems[row].prompt, texts[row][column]
    where = f"prompt {_short(prompt)}, completion {_short(completion)}"
    return scores._replace(message=f"{where}:\n{scores.message}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:100]} .. {text[-100:]}")


def _joined(parts: list[Completions]) -> Completions:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _joined_scores(parts: list[Scores]) -> Scores:
    failures = {kind: sum(part.failures[kind] for part in parts) for kind in parts[0].failures}
    return Scores(
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.valid for part in parts]),
        failures,
        next((part.message for part in parts if part.message), ""),
    )
