"""The loop of a training run: sample, verify, update, log, save, any number of restarts."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from maxpo import parallel, runs, training
from maxpo.adaptive_k import SuccessEstimate
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.finite import check_parameters
from maxpo.lm.training.journal import Journal
from maxpo.lm.training.packing import Packing, make_packing
from maxpo.lm.training.rollouts import Attempts, Collector, Rollouts, Timer
from maxpo.lm.training.schedule import Schedule
from maxpo.lm.training.update import Batch, Reference, Update
from maxpo.lm.training.variance_ratio import VarianceRatio

__all__ = ["ADAPT", "EVALUATE", "INIT", "Trainer", "key_of"]

INIT, SAMPLE, SHUFFLE, EVALUATE, MEASURE, ADAPT = range(6)
"""Uses of a seed's key; see `key_of`."""


def key_of(seed: int, use: int, step: int = 0) -> jax.Array:
    """The PRNG key of one use of a seed at one step, so that a resumed run draws the same."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), step)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains one policy in one run's folder.

    Attributes:
      collect: Draws and scores the groups of a step, in the order of its seed.
      update: Compiled, see `make_update`.
      reference: Compiled log-probabilities `[P, N, T]` under frozen parameters.
      failures: Reports failed verifications.
      journal: Writes what the model writes.
      schedule: Evaluates while training.
      variance_ratio: Tells whether centering pays; None where the method has no k.
    """

    collect: Collector
    update: Update
    reference: Reference
    failures: FailureLog
    journal: Journal
    schedule: Schedule
    variance_ratio: VarianceRatio | None = None

    def __call__(
        self,
        run: runs.Run,
        state: training.TrainState,
        *,
        start_from: nnx.State,
        learning_rate: ArrayLike,
        method: int = 0,
    ) -> tuple[training.TrainState, int]:
        """Does the updates that are left of a run.

        Args:
          run: Open and not finished.
          state: Before the first update; donated.
          start_from: Frozen parameters that the KL penalty refers to.
          learning_rate: The optimizer's learning rate.
          method: The number of the method, see `Update`.

        Returns:
          The state after the last update, and the step of that.

        Raises:
          FloatingPointError: If the loss, its gradient, an advantage or a log-probability that it
            is made of is not finite, naming the step and the prompt, or a parameter that would be
            saved. Diagnostics may be anything.
          RuntimeError: If the verifier raised on every sample of a step or an evaluation.
        """
        rl, seed = self.collect.rl, self.collect.seed
        state, start = run.restore(state, donate=True)
        # From here on as each process knows it: others see late what the first one logs.
        history = [row for row in runs.read_metrics(run.folder) if row["step"] <= start]
        if self.schedule.is_over(history):
            return state, start
        rate, step = jnp.float32(learning_rate), start
        for step in runs.steps(start, rl.steps):
            timer, began = Timer(), time.perf_counter()
            groups = self.collect(state.params, step, key_of(seed, SAMPLE, step), timer)
            self.failures.note(f"step {step}", groups.sampled)
            _check_groups(
                step, groups, "log-probabilities", np.asarray(groups.completions.log_probs)
            )
            ratios = self._ratios(state.params, step, groups, timer)
            with timer("updating"):
                shuffle = key_of(seed, SHUFFLE, step)
                counts = np.asarray(groups.completions.mask & groups.where[..., None])
                packing = make_packing(rl, shuffle, counts)
                batch = self._batch(groups, start_from, state.success, packing)
                state, found, advantages = self.update(
                    state,
                    batch,
                    shuffle,
                    step=step - 1,
                    learning_rate=rate,
                    method=method,
                    order=packing.order,
                    room=packing.room,
                )
                metrics: dict[str, Any] = dict(jax.device_get(found))
                values = np.asarray(parallel.fetch(advantages))
            _check_groups(step, groups, "advantages", values)
            if state.success is not None:
                # After the update, whose k come from the steps before.
                state = state._replace(success=_counted(state.success, groups.attempts))
            kept = np.abs(values)[groups.where]
            metrics["update_padding"] = packing.padding
            metrics["advantage_size"] = kept.mean() if kept.size else 0.0
            runs.check_finite(step, {name: metrics[name] for name in ("loss", "gradient_norm")})
            self.journal.train(run, step, groups, values, self.collect)
            seconds = time.perf_counter() - began
            judged = self._judge(run, state.params, step)
            run.log(step, {**groups.metrics, **metrics, **ratios, **judged})
            run.log_timings(step, _timings(timer, seconds, groups))
            history.append({"step": step, **judged})
            is_over = bool(judged) and self._keep_best(run, state.params, history)
            if is_over or step % rl.save_every == 0 or step == rl.steps or run.stop_asked():
                check_parameters(step, state.params)
                run.save(step, state)
            if is_over:
                break
        return state, step

    def _ratios(
        self, params: nnx.State, step: int, groups: Rollouts, timer: Timer
    ) -> dict[str, float]:
        """The predicted ratio of variances and, if that is due, the measured one."""
        dial = self.variance_ratio
        if dial is None:
            return {}
        found = dial.predicted(step, groups)
        if dial.is_due(step):
            assert dial.measurement is not None
            with timer("measuring"):
                key = key_of(self.collect.seed, MEASURE, step)
                pairs = self.collect.pairs(params, step, dial.measurement.prompts, key)
                found |= dial.measured(params, step, pairs)
        return found

    def _judge(self, run: runs.Run, params: nnx.State, step: int) -> dict[str, float]:
        """The metrics of an evaluation, if one is due."""
        if not self.schedule.is_due(step, self.collect.rl.steps):
            return {}
        check_parameters(step, params)  # If they are the best, they are saved, too.
        judge = self.schedule.judge
        found = judge(params, step)
        self.failures.note(f"evaluation after step {step}", found.scores)
        self.journal.held_out(run, step, judge, found)
        return judge.metrics(found)

    def _keep_best(
        self, run: runs.Run, params: nnx.State, history: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Keeps parameters that were never better; whether there were none for too long."""
        step = history[-1]["step"]
        if self.schedule.is_best(history):
            run.keep_best(step, params)
        is_over = self.schedule.is_over(history)
        if is_over:
            best = self.schedule.best(history)
            assert best is not None
            metric = self.schedule.metric
            runs.say(
                f"stops early, after step {step}: {metric} was best after step {best['step']}, "
                f"{best[metric]:.4f}, and no better in {self.schedule.patience} evaluations since"
            )
        return is_over

    def _batch(
        self,
        groups: Rollouts,
        start_from: nnx.State,
        success: SuccessEstimate | None,
        packing: Packing,
    ) -> Batch:
        """The groups on the devices, with their log-probabilities under the frozen policy."""
        arrays: Any = (groups.completions, groups.rewards, groups.valid, groups.where)
        rates = None if success is None else parallel.fetch(_rates(success, groups.numbers))
        batch = Batch(groups.problems.prompts, *arrays)._replace(success_rate=rates)
        batch = parallel.shard_batch(batch)
        if self.collect.rl.kl_coefficient:
            kept = batch.completions._replace(mask=batch.completions.mask & batch.where[..., None])
            # The first epoch has every group once, in pieces that the room is for.
            order = None if packing.order is None else packing.order.ravel()[: len(groups.rewards)]
            found = self.reference(start_from, batch.prompts, kept, order=order, room=packing.room)
            batch = batch._replace(reference_log_probs=found)
        return batch


@jax.jit
def _rates(success: SuccessEstimate, numbers: np.ndarray) -> jax.Array:
    return parallel.constrain(success.rate(numbers))


@jax.jit
def _counted(success: SuccessEstimate, attempts: Attempts) -> SuccessEstimate:
    """The estimate after further groups, whole on every device as before."""
    after = success.update(attempts.numbers, attempts.correct, where=attempts.valid)
    return parallel.constrain(after)


def _check_groups(step: int, groups: Rollouts, name: str, values: np.ndarray) -> None:
    """Raises FloatingPointError for the first prompt whose values are not finite."""
    for problem, of_prompt in zip(groups.problems.problems, values, strict=True):
        if not np.isfinite(of_prompt).all():
            runs.check_finite(step, {f"{name} of {problem.prompt!r}": of_prompt})


def _timings(timer: Timer, seconds: float, groups: Rollouts) -> dict[str, float]:
    """Seconds of a step and of its phases, their tokens, and tokens per second.

    "verifying" is the time that is left of it after the sampling.
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
