"""Sampled groups with their rewards; marks groups whose rewards are all equal."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import max_at_k, parallel, pass_at_k
from maxpo.lm.model.generation import generate, is_one_block, start
from maxpo.lm.model.policy import NOTHING_FROZEN
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import Tokenizer, end_ids
from maxpo.lm.tasks.verification import PendingScores, Scores
from maxpo.lm.training.grading import Grading, deciding
from maxpo.lm.training.problems import EncodedProblems, batch_of_step, problems_per_step
from maxpo.lm.training.update import Batch

__all__ = [
    "Attempts",
    "Collector",
    "Draw",
    "Rollouts",
    "Sampler",
    "Timer",
    "Verify",
    "has_variance",
    "make_draw",
]

Draw = Callable[[nnx.State, Prompts, jax.Array], Callable[[], Completions]]
"""Parameters, P prompts and a key to what finishes P groups of completions, which are started."""


class Verify(Protocol):
    """Scores completions, now or in other processes: a `VerifierPool`, a `RewardFunction`."""

    def submit(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
    ) -> PendingScores:
        """Starts to score P groups of N texts, one group for each problem."""


class Attempts(NamedTuple):
    """What a step has found out about how often problems are solved.

    Attributes:
      numbers: `[Q]`, the problem of each group that was sampled, also of those that are not kept:
        the others alone would make problems look easier or harder than they are.
      correct: `[Q, N]`, see `Grading.correct`.
      valid: `[Q, N]`, samples that count.
    """

    numbers: np.ndarray
    correct: np.ndarray
    valid: np.ndarray


class Rollouts(NamedTuple):
    """The groups that a step learns from, and what its metrics are about; on the host.

    Attributes:
      problems: P problems with their prompts.
      numbers: `[P]`, their numbers among all that there are.
      completions: `[P, N, T]`.
      rewards: `[P, N]`, never NaN; see `Grading.rewards`.
      valid: `[P, N]`, samples to compute advantages from.
      where: `[P, N]`, samples that count in the loss: none of a zero-variance group that is
        dropped.
      scores: Theirs, as the verifier gave them.
      sampled: The scores of all groups that were sampled, including those that are not kept.
      attempts: Theirs.
      metrics: Also of all of these.
    """

    problems: EncodedProblems
    numbers: np.ndarray
    completions: Completions
    rewards: np.ndarray
    valid: np.ndarray
    where: np.ndarray
    scores: Scores
    sampled: Scores
    attempts: Attempts
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


def make_draw(
    graph: nnx.GraphDef,
    tokenizer: Tokenizer,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    frozen: nnx.State = NOTHING_FROZEN,
) -> Draw:
    """The function that draws `group_size` completions of each prompt.

    It takes trained parameters; `frozen` is what the policy has beside them.
    """
    settings: dict[str, Any] = {
        "group_size": group_size,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "eos_id": end_ids(tokenizer),
        "pad_id": tokenizer.pad_id,
    }

    @jax.jit
    def whole(
        frozen: nnx.State, params: nnx.State, prompts: Prompts, key: jax.Array
    ) -> Completions:
        return generate(nnx.merge(graph, params, frozen), prompts, key=key, **settings)

    def draw(params: nnx.State, prompts: Prompts, key: jax.Array) -> Callable[[], Completions]:
        if is_one_block(max_new_tokens):  # Then this costs the least on the host.
            found = whole(frozen, params, prompts, key)
            return lambda: found
        return start(nnx.merge(graph, params, frozen), prompts, key=key, **settings)

    return draw


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws groups of completions and has them scored.

    Attributes:
      draw: Compiled for one number of prompts.
      tokenizer: Turns completions into the texts that are scored.
      verify: Scores them.
      prefix: How the answers of all prompts begin: a part of what is scored.
    """

    draw: Draw
    tokenizer: Tokenizer
    verify: Verify
    prefix: str = ""

    def __call__(
        self,
        params: nnx.State,
        problems: EncodedProblems,
        key: jax.Array,
        *,
        batches: int,
        timer: Timer,
        scored: int | None = None,
    ) -> tuple[Completions, Scores]:
        """A group for each of P problems, and its scores.

        While one batch is scored in other processes, the next one is sampled. On a pod each process
        has its share of the completions scored, and all get all scores.

        Args:
          params: The policy's parameters.
          problems: P problems.
          key: PRNG key.
          batches: A divisor of P; each has a key of its own.
          timer: Gets the seconds of "sampling" and, after it, "verifying".
          scored: How many problems are scored, the first ones; the others have scores that are not
            valid, and are no failures. None: all.
        """
        numbers = np.split(np.arange(len(problems.problems)), batches)
        parts = [problems.take(part) for part in numbers]
        pending, completions = [], []
        limit = len(problems.problems) if scored is None else scored

        def dispatch(batch: int) -> Callable[[], Completions]:
            prompts = parallel.shard_batch(parts[batch].prompts)
            return self.draw(params, prompts, jax.random.fold_in(key, batch))

        with timer("sampling"):
            running = dispatch(0)
            for batch, part in enumerate(parts):
                current = running()
                if batch + 1 < batches:
                    # Its first block, which may be all, is in the device's queue before the host
                    # reads this batch: the device goes on while this is scored.
                    running = dispatch(batch + 1)
                current = parallel.fetch(current)
                completions.append(current)
                mine = parallel.my_share(len(part.problems))
                mine = mine[numbers[batch][mine] < limit]
                texts = [
                    [self.text(row, kept) for row, kept in zip(*group, strict=True)]
                    for group in zip(current.tokens[mine], current.mask[mine], strict=True)
                ]
                own = [part.problems[i] for i in mine]
                pending.append((mine, own, texts, self.verify.submit(own, texts)))
        with timer("verifying"):
            shape = completions[0].tokens.shape[:2]
            scores = [
                _of_all_processes(_located(each.result(), own, texts), mine, shape)
                for mine, own, texts, each in pending
            ]
        return _joined(completions), _joined_scores(scores)

    def text(self, tokens: np.ndarray, mask: np.ndarray) -> str:
        """What is scored of a completion, whose tokens `[T]` count where `mask` says so."""
        return self.prefix + self.tokenizer.decode(tokens[mask])

    def ended(self, completions: Completions) -> np.ndarray:
        """Which completions `[P, N]` have come to an end; the others were truncated."""
        ends = np.isin(completions.tokens, end_ids(self.tokenizer))
        return np.any(ends & completions.mask, axis=-1)


@dataclasses.dataclass(frozen=True)
class Collector:
    """Collects the groups of a step.

    Attributes:
      rl: The `rl` of a config.
      sampler: Draws and scores groups.
      train: Problems to learn from.
      grading: From scores to rewards.
      seed: Decides the order of the problems.
    """

    rl: ConfigDict
    sampler: Sampler
    train: EncodedProblems
    grading: Grading
    seed: int

    def __call__(self, params: nnx.State, step: int, key: jax.Array, timer: Timer) -> Rollouts:
        """The groups of a step.

        With `zero_variance_groups="oversample"` (dynamic sampling) further rounds of P prompts are
        drawn until P groups have rewards that differ, or `oversampling` rounds are done. Those
        groups come first, in the order in which they were drawn; others fill up the batch and count
        for nothing.

        Args:
          params: The policy's parameters.
          step: From 1. The problems depend on nothing but the seed and this.
          key: PRNG key of the step.
          timer: As in `Sampler`.
        """
        rl, numbers = self.rl, self._numbers(step)
        drawn: list[tuple[Completions, Scores]] = []
        varied = np.zeros(0, bool)
        for part in np.split(numbers, len(numbers) // rl.prompts):
            completions, scores = self.sampler(
                params,
                self.train.take(part),
                jax.random.fold_in(key, len(drawn)),
                batches=rl.sampling_batches,
                timer=timer,
            )
            drawn.append((completions, scores))
            rewards, valid = self._graded(completions, scores)
            varied = np.append(varied, has_variance(rewards, valid))
            if np.sum(varied) >= rl.prompts:
                break
        completions = _joined([completions for completions, _ in drawn])
        return self._select(
            completions, _joined_scores([scores for _, scores in drawn]), numbers, varied
        )

    def pairs(self, params: nnx.State, step: int, prompts: int, key: jax.Array) -> Batch:
        """Two independent groups of each of the first prompts of a step, beside each other.

        Args:
          params: The policy's parameters.
          step: From 1.
          prompts: How many; `rl.prompts / rl.sampling_batches` divides twice as many.
          key: PRNG key.
        """
        rl = self.rl
        problems = self.train.take(np.repeat(self._numbers(step)[:prompts], 2))
        batches = 2 * prompts * rl.sampling_batches // rl.prompts
        completions, scores = self.sampler(params, problems, key, batches=batches, timer=Timer())
        rewards, valid = self._graded(completions, scores)
        where = self._where(valid, has_variance(rewards, valid))
        arrays: Any = (problems.prompts, completions, rewards, valid, where)
        return Batch(*arrays)

    def _numbers(self, step: int) -> np.ndarray:
        """Numbers of the problems of all rounds of a step."""
        size, count = problems_per_step(self.rl), len(self.train.problems)
        return batch_of_step(self.seed, step, size, count, self.train.buckets)

    def _select(
        self, completions: Completions, scores: Scores, numbers: np.ndarray, varied: np.ndarray
    ) -> Rollouts:
        """Keeps P groups, those whose rewards differ first, and describes all."""
        rl = self.rl
        rewards, valid = self._graded(completions, scores)
        order = np.argsort(~varied, kind="stable")[: rl.prompts]
        if rl.zero_variance_groups != "oversample":
            order = np.arange(rl.prompts)
        where = self._where(valid, varied)
        problems = self.train.take(numbers[order])
        correct = self.grading.correct(deciding(scores))
        return Rollouts(
            problems,
            numbers[order],
            jax.tree.map(lambda array: array[order], completions),
            rewards[order],
            valid[order],
            where[order],
            scores.take(order),
            scores,
            Attempts(numbers[: len(varied)], correct, valid),
            {
                **self._metrics(completions, scores, correct, rewards, valid, varied),
                "prompt_padding": 1 - np.mean(problems.prompts.mask),
            },
        )

    def _metrics(
        self,
        completions: Completions,
        scores: Scores,
        correct: np.ndarray,
        rewards: np.ndarray,
        valid: np.ndarray,
        varied: np.ndarray,
    ) -> dict[str, Any]:
        values = jax.device_get(_group_values(rewards, correct, k=self.rl.eval_k))
        lengths = completions.mask.sum(axis=-1)
        return {
            # Over the samples that advantages are computed from; NaN where there are none.
            "mean_reward": rewards[valid].mean() if valid.any() else np.nan,
            # Of each part over the samples that were scored, without its weight.
            **{
                f"reward_{name}": part[scores.valid].mean() if scores.valid.any() else np.nan
                for name, part in scores.parts.items()
            },
            **values,
            "zero_variance_groups": 1 - varied.mean(),
            "sampled_groups": len(varied),
            "failed": 1 - scores.valid.mean(),
            **{f"failed_{kind}": count for kind, count in scores.failures.items()},
            "completion_length": lengths.mean(),
            "truncated": 1 - self.sampler.ended(completions).mean(),
        }

    def _where(self, valid: np.ndarray, varied: np.ndarray) -> np.ndarray:
        """Samples `[P, N]` that count in the loss."""
        is_kept = self.rl.zero_variance_groups == "keep"
        return valid if is_kept else valid & varied[:, None]

    def _graded(self, completions: Completions, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
        """Rewards, and the samples to learn from; both `[P, N]`."""
        rewards = self.grading.rewards(scores)
        # All of them where a failure counts as the lowest reward.
        valid = scores.valid if self.rl.failures == "mask" else np.ones_like(scores.valid)
        if self.rl.truncated == "mask":
            valid = valid & self.sampler.ended(completions)
        if self.rl.truncated == "penalty":
            penalty = np.float32(self.rl.truncation_penalty)
            rewards = rewards - penalty * ~self.sampler.ended(completions)
        return rewards, valid


def has_variance(rewards: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Whether the kept rewards of each group `[P, N]` differ: equal ones tell nothing apart."""
    highest = np.max(rewards, axis=-1, where=where, initial=-np.inf)
    lowest = np.min(rewards, axis=-1, where=where, initial=np.inf)
    return highest > lowest


@partial(jax.jit, static_argnames="k")
def _group_values(rewards: jax.Array, correct: jax.Array, *, k: int) -> dict[str, jax.Array]:
    """Over all samples: a failed one is one of the k that were drawn, and never the best."""
    return {
        "max_at_k": jnp.mean(max_at_k(rewards, k)),
        "pass_at_k": jnp.mean(pass_at_k(correct, k)),
    }


def _of_all_processes(mine: Scores, rows: np.ndarray, shape: tuple[int, ...]) -> Scores:
    """The scores `[P, N]` of all, of which each process has some rows."""

    def spread(array: np.ndarray) -> np.ndarray:
        whole = np.zeros(shape, array.dtype)
        whole[rows] = array.reshape(-1, shape[1])  # Without a row it has no columns, either.
        return whole

    own = jax.tree.map(spread, (mine.rewards, mine.valid, dict(mine.parts)))
    (rewards, valid, parts), failures = parallel.sum_over_processes((own, mine.failures))
    return Scores(
        rewards,
        valid,
        failures,
        parallel.first_text(mine.message),
        {name: parts[name] for name in mine.parts},  # JAX sorts them.
        mine.decides,
        {(int(rows[row]), column): text for (row, column), text in mine.messages.items()},
    )


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
    """Those of parts with equally many groups."""
    failures = {kind: sum(part.failures[kind] for part in parts) for kind in parts[0].failures}
    return Scores(
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.valid for part in parts]),
        failures,
        next((part.message for part in parts if part.message), ""),
        {name: np.concatenate([part.parts[name] for part in parts]) for name in parts[0].parts},
        parts[0].decides,
        {
            (number * len(part.rewards) + row, column): text
            for number, part in enumerate(parts)
            for (row, column), text in part.messages.items()
        },
    )
