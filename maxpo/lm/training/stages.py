"""Fine-tuning and each method after it, as runs of their own that any kill may interrupt."""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import parallel, runs, training
from maxpo.lm.model import lora
from maxpo.lm.model.policy import trainable
from maxpo.lm.model.sharding import RULES
from maxpo.lm.training import sft, update
from maxpo.lm.training.evaluation import Curve, Judge, curve
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.figures import best_of_k_figure
from maxpo.lm.training.finite import check_parameters
from maxpo.lm.training.folders import HF
from maxpo.lm.training.gradient_variance import make_group_gradient
from maxpo.lm.training.grading import read_summary, summarized
from maxpo.lm.training.handover import context_of, hand_over, save_shape
from maxpo.lm.training.initial_state import make_initial_state
from maxpo.lm.training.journal import Journal
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.problems import batch_of_step
from maxpo.lm.training.rollouts import Collector, Draw, Sampler, Timer, Verify, make_draw
from maxpo.lm.training.schedule import Schedule, metric_of
from maxpo.lm.training.settings import Settings, layout, make_model
from maxpo.lm.training.summaries import summary_of
from maxpo.lm.training.trainer import ADAPT, EVALUATE, INIT, Trainer, key_of
from maxpo.lm.training.variance_ratio import Measurement, VarianceRatio, make_variance_ratio
from maxpo.methods import Method, choose_advantages

__all__ = ["SFT", "Programs", "Stages"]

SFT = "sft"


class Programs:
    """The policy and everything that is compiled at its first call, once for all stages.

    Attributes:
      params: What all methods start from: what is trained of the policy, before any training or,
        when that is done, after the fine-tuning.
      frozen: What is not trained: of a policy with adapters the rest.
      learn: An update of the fine-tuning.
      draw: Draws the groups of a batch of prompts to train on.
      draw_held_out: Draws the groups of a batch of held-out prompts.
      reference: Log-probabilities under frozen parameters.
      update: An update of the policy gradient, of any of the methods.
      group_gradient: The gradient of one group, for diagnostics.
    """

    def __init__(self, settings: Settings):
        config, rl = settings.config, settings.config.rl
        model = nnx.merge(*make_model(settings, key_of(config.seed, INIT)))
        if settings.lora is not None:
            model = lora.adapt(model, settings.lora, key_of(config.seed, ADAPT))
        self._graph, params, self.frozen = trainable(model)
        graph, frozen = self._graph, self.frozen
        place = partial(layout, config)
        self.params = parallel.shard(params, place(params))
        self.learn = sft.make_update(graph, config.sft, rules=RULES, layout=place, frozen=frozen)
        self.draw = make_draw(
            graph,
            settings.tokenizer,
            group_size=rl.group_size,
            max_new_tokens=rl.max_new_tokens,
            temperature=rl.temperature,
            frozen=frozen,
        )
        self.draw_held_out = make_draw(
            graph,
            settings.tokenizer,
            group_size=config.evaluation.samples,
            max_new_tokens=rl.max_new_tokens,
            temperature=config.evaluation.temperature,
            frozen=frozen,
        )
        self.reference = update.make_reference(graph, rl, frozen=frozen)
        advantages = choose_advantages(settings.methods, rl.steps)
        optimizer = partial(make_optimizer, rl, rules=RULES)
        self.update = update.make_update(
            graph, rl, advantages, optimizer=optimizer, layout=place, frozen=frozen
        )
        self.group_gradient = make_group_gradient(graph, rl, layout=place, frozen=frozen)

    def whole(self, params: nnx.State) -> nnx.State:
        """The parameters of the plain transformer that the policy is with these trained ones."""
        return lora.merged(nnx.merge(self._graph, params, self.frozen))


class Stages:
    """The stages of a study; each takes up its folder where it was left.

    Attributes:
      settings: Settings of the whole study.
      verify: Scores completions.
      failures: Reports failed verifications.
    """

    def __init__(self, settings: Settings, verify: Verify):
        self.settings = settings
        self.verify = verify
        self.failures = FailureLog()

    @cached_property
    def programs(self) -> Programs:
        """Made at the first stage that needs them."""
        return Programs(self.settings)

    def fine_tune(self, folder: Path) -> tuple[nnx.State, dict[str, Any]]:
        """Trains on answers.

        Returns:
          The parameters, and the run's summary as of `post_train`.
        """
        params, summary = self._fine_tuned(folder)
        # In the place of those before, which nothing needs: a model may fill the memory.
        self.programs.params = params
        return params, summary

    def _fine_tuned(self, folder: Path) -> tuple[nnx.State, dict[str, Any]]:
        settings, config = self.settings, self.settings.config.sft
        with self._open(_config_of_sft(settings.config), folder) as run:
            if not config.steps:
                return self._judge_start(run)
            state = self._initial_state(self.programs.params, config)
            if run.finished:
                state, _ = run.last_state(state, donate=True)
                return state.params, dict(run.summary or {})
            self._save_shape(run)
            state, start = run.restore(state, donate=True)
            timer = Timer()
            for step in runs.steps(start, config.steps, unit="fine-tuning updates"):
                numbers = batch_of_step(
                    settings.config.seed,
                    step,
                    config.batch_size,
                    len(settings.train.problems),
                    settings.train.buckets,
                )
                prompts = settings.train.take(numbers).prompts
                assert settings.answers is not None
                tokens, mask = (array[numbers] for array in settings.answers)
                prompts, tokens, mask = parallel.shard_batch((prompts, tokens, mask))
                with timer("updating"):
                    state, found = self.programs.learn(state, prompts, tokens, mask)
                    # Fetched now and then only: the device need not wait for the host in between.
                    log = step % config.log_every == 0 or step == config.steps
                    found = jax.device_get(found) if log else found
                if log:
                    runs.check_finite(step, found)
                    run.log(step, found)
                    run.log_timings(step, timer.seconds)
                    timer = Timer()
                if step % config.save_every == 0 or step == config.steps or run.stop_asked():
                    if not log:
                        # A state that is not finite would take the place of the last good one.
                        runs.check_finite(step, jax.device_get(found))
                    check_parameters(step, state.params)
                    run.save(step, state)
            judge = self._judge(settings.config.seed)
            return state.params, self._finish(
                run, judge, state.params, config.steps, self._journal()
            )

    def _judge_start(self, run: runs.Run) -> tuple[nnx.State, dict[str, Any]]:
        """Judges the policy as it came, where nothing is fine-tuned; returns as `fine_tune`."""
        params = self.programs.params
        if run.finished:
            return params, dict(run.summary or {})
        self._save_shape(run)
        run.restore(())
        judge = self._judge(self.settings.config.seed)
        return params, self._finish(run, judge, params, 0, self._journal())

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Judges the policy before any training.

        Returns:
          The run's summary: "scores" as of `post_train`, and "pass" and, where rewards are graded,
          "max" with their curves.
        """
        settings = self.settings
        with runs.Run(_config_of_sft(settings.config), folder) as run:
            if run.finished:
                return run.report()
            judge = self._judge(settings.config.seed)
            judged = judge(self.programs.params, 0)
            self.failures.note("evaluation", judged.scores)
            self._journal().held_out(run, 0, judge, judged)
            curves = judge.curves(judged)
            name = Path(settings.config.model.pretrained or settings.config.model.size).name
            panels = {f"{of}@k on held-out problems": {name: curves[of]} for of in curves}
            run.figure("best_of_k", lambda: best_of_k_figure(panels, name))
            found = {of: curve._asdict() for of, curve in curves.items()}
            failed = {"failed": 1 - judged.scores.valid.mean()}
            summary = {**summarized(judged.scores), **found, **failed}
            return run.finish(summary, table=_rows(curves))

    def post_train(
        self, method: Method, seed: int, start_from: nnx.State, folder: Path
    ) -> dict[str, Any]:
        """Trains with one method from given parameters.

        Args:
          method: One of the study's; gives the advantages.
          seed: Seed of prompts and samples, the same for every method.
          start_from: Parameters after the fine-tuning.
          folder: The run's folder.

        Returns:
          The run's summary: "scores" `[P][n]` of held-out problems, NaN where the verification
          failed; "verified", how many samples were, in training and evaluation, and "failures"
          among them by kind.

        Raises:
          FloatingPointError: As `Trainer`.
          RuntimeError: As `Trainer`.
        """
        settings, rl = self.settings, self.settings.config.rl
        with self._open(_config_of_method(settings.config, method, seed), folder) as run:
            if run.finished:
                return dict(run.summary or {})
            self._save_shape(run)
            programs = self.programs
            journal, judge = self._journal(), self._judge(seed)
            train = Trainer(
                Collector(rl, self._sampler(programs.draw), settings.train, settings.grading, seed),
                programs.update,
                programs.reference,
                self.failures,
                journal,
                self._schedule(judge),
                self._variance_ratio(method),
            )
            state, step = train(
                run,
                self._initial_state(start_from, rl, counts=self._adapts),
                start_from=start_from,
                learning_rate=method.learning_rate or rl.learning_rate,
                method=settings.methods.index(method),
            )
            self._hand_over(run, state.params)
            # The trainer has written those of its own evaluations, of which the last one is this.
            is_written = bool(settings.config.evaluation.every)
            return self._finish(run, judge, state.params, step, None if is_written else journal)

    def _variance_ratio(self, method: Method) -> VarianceRatio | None:
        config = self.settings.config
        every, prompts = config.diagnostics.gradient_variance, config.diagnostics.prompts
        measurement = Measurement(every, prompts, self.programs.group_gradient) if every else None
        return make_variance_ratio(method, config.rl.steps, measurement)

    def _save_shape(self, run: runs.Run) -> None:
        settings = self.settings
        save_shape(
            settings.model,
            settings.tokenizer,
            run.folder,
            extra=context_of(settings.checkpoint),
            lora=settings.lora,
            base=settings.checkpoint,
        )

    def _hand_over(self, run: runs.Run, params: nnx.State) -> None:
        """Writes the trained model where it was made from a checkpoint and is wanted."""
        settings, dtype = self.settings, self.settings.config.model.export
        if settings.checkpoint is None or not dtype:
            return
        hand_over(
            settings.model,
            self.programs.whole(params),
            settings.tokenizer,
            run.folder / HF,
            dtype=dtype,
            extra=context_of(settings.checkpoint),
        )

    def _schedule(self, judge: Judge) -> Schedule:
        evaluation, rl = self.settings.config.evaluation, self.settings.config.rl
        metric = metric_of(rl.eval_k, binary=self.settings.grading.binary)
        return Schedule(evaluation.every, evaluation.patience, metric, judge)

    def _open(self, config: dict[str, Any], folder: Path) -> runs.Run:
        return runs.Run(config, folder, keep=1, loggers=self.settings.config.log.loggers)

    def _journal(self) -> Journal:
        log = self.settings.config.log
        return Journal(log.every, log.groups)

    def _sampler(self, draw: Draw) -> Sampler:
        settings = self.settings
        prefix = settings.config.task.answer_prefix
        return Sampler(draw, settings.tokenizer, self.verify, prefix)

    def _judge(self, seed: int) -> Judge:
        settings = self.settings
        return Judge(
            self._sampler(self.programs.draw_held_out),
            settings.held_out,
            key_of(seed, EVALUATE),
            settings.config.evaluation.prompts,
            settings.grading,
        )

    def _finish(
        self, run: runs.Run, judge: Judge, params: nnx.State, step: int, journal: Journal | None
    ) -> dict[str, Any]:
        """Ends a run with the scores of held-out problems; writes some groups to the journal."""
        grading, config = self.settings.grading, self.settings.config
        judged = judge(params, step)
        self.failures.note(f"evaluation of {run.folder.name}", judged.scores)
        if journal is not None:
            journal.held_out(run, step, judge, judged)
        schedule, group_size = self._schedule(judge), config.rl.group_size
        summary = summary_of(run, schedule, step, group_size, judged.scores)
        scores, values = read_summary(summary)
        correct = grading.correct(values)
        values = correct if grading.binary else scores
        of_k = curve(values[None], binary=grading.binary).value
        row = {
            "run": run.folder.name,
            "mean reward": of_k[0],
            f"best of {scores.shape[1]}": of_k[-1],
            "correct": correct.mean(),
            "failed": np.isnan(scores).mean(),
        }
        return run.finish(summary, table=[row])

    @property
    def _adapts(self) -> bool:
        """Whether the k of any method adapts; one state for all, so that one program serves all."""
        return any(method.adapts for method in self.settings.methods)

    def _initial_state(
        self, params: nnx.State, section: ConfigDict, *, counts: bool = False
    ) -> training.TrainState:
        """Before any training; with how often each problem is solved if it `counts`."""
        return make_initial_state(
            params,
            make_optimizer(section, section.learning_rate, rules=RULES),
            layout=partial(layout, self.settings.config),
            problems=len(self.settings.train.problems) if counts else None,
        )


def _rows(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """A row for each k."""
    rows = []
    for k in next(iter(curves.values())).k:
        row: dict[str, Any] = {"k": k}
        for name, of in curves.items():
            row |= of.at(k, f"{name}@k")
        rows.append(row)
    return rows


def _config_of_sft(config: ConfigDict) -> dict[str, Any]:
    """What the fine-tuning depends on."""
    names = ("seed", "task", "tokenizer", "model", "sft", "evaluation", "verification")
    fields = config.to_dict()
    return {name: fields[name] for name in names} | {"max_new_tokens": config.rl.max_new_tokens}


def _config_of_method(config: ConfigDict, method: Method, seed: int) -> dict[str, Any]:
    """What the run of a method depends on: the fine-tuning's config, and its own."""
    own = {"rl": config.rl.to_dict(), "method": method._asdict(), "rl_seed": seed}
    return _config_of_sft(config) | own
