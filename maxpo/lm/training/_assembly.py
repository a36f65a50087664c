"""The parts of a training run, each made from what a call from Python came to."""

import dataclasses
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx
from ml_collections import ConfigDict

from maxpo.lm.model.sharding import Rules, layout
from maxpo.lm.tasks.tokenizers import Tokenizer
from maxpo.lm.training.evaluation import Judge
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.initial_state import make_initial_state
from maxpo.lm.training.journal import Journal
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.problems import EncodedProblems
from maxpo.lm.training.rollouts import Collector, Sampler, Verify, make_draw
from maxpo.lm.training.schedule import Schedule, metric_of
from maxpo.lm.training.trainer import EVALUATE, Trainer, key_of
from maxpo.lm.training.update import make_reference, make_update
from maxpo.lm.training.variance_ratio import make_variance_ratio
from maxpo.methods import Method, choose_advantages

__all__ = ["Assembly"]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What the parts of a run are made from, all of it checked.

    Attributes:
      graph: The policy's structure.
      params: What is trained of it.
      frozen: What is not, where it lies on the devices.
      rules: The policy's, of where its arrays lie; see `maxpo.lm.model.sharding.layout`.
      tokenizer: Between text and tokens.
      config: `rl` and `evaluation`, as in configs/lm.py.
      method: Gives the advantages.
      optimizer: One of optax, or None for that of `config.rl`.
      grading: What scores mean.
      seed: Decides the order of problems, and all samples.
    """

    graph: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State
    rules: Rules | None
    tokenizer: Tokenizer
    config: ConfigDict
    method: Method
    optimizer: optax.GradientTransformation | None
    grading: Grading
    seed: int

    def judge(self, problems: EncodedProblems, verify: Verify) -> Judge:
        """What judges by held-out problems."""
        samples, prompts = self.config.evaluation.samples, self.config.evaluation.prompts
        sampler = self._sampler(samples, verify)
        return Judge(sampler, problems, key_of(self.seed, EVALUATE), prompts, self.grading)

    def schedule(self, judge: Judge) -> Schedule:
        """When it judges while training."""
        evaluation = self.config.evaluation
        metric = metric_of(self.config.rl.eval_k, binary=self.grading.binary)
        return Schedule(evaluation.every, evaluation.patience, metric, judge)

    def initial_state(self, problems: int) -> Any:
        """The state before the first update, with success rates of problems if k adapts to them."""
        return make_initial_state(
            self.params,
            self._make_optimizer(self.config.rl.learning_rate),
            layout=self._layout,
            problems=problems if self.method.adapts else None,
        )

    def trainer(
        self,
        problems: EncodedProblems,
        verify: Verify,
        failures: FailureLog,
        journal: Journal,
        schedule: Schedule,
    ) -> Trainer:
        """What trains on problems."""
        rl = self.config.rl
        sampler = self._sampler(rl.group_size, verify)
        return Trainer(
            Collector(rl, sampler, problems, self.grading, self.seed),
            make_update(
                self.graph,
                rl,
                choose_advantages([self.method], rl.steps),
                optimizer=self._make_optimizer,
                layout=self._layout,
                frozen=self.frozen,
            ),
            make_reference(self.graph, rl, frozen=self.frozen),
            failures,
            journal,
            schedule,
            make_variance_ratio(self.method, rl.steps),
        )

    @property
    def _layout(self) -> Any:
        return partial(layout, rules=self.rules, fully_sharded=False)

    def _make_optimizer(self, rate: jax.Array | float) -> optax.GradientTransformation:
        if self.optimizer is not None:
            return self.optimizer
        return make_optimizer(self.config.rl, rate, rules=self.rules)

    def _sampler(self, group_size: int, verify: Verify) -> Sampler:
        draw = make_draw(
            self.graph,
            self.tokenizer,
            group_size=group_size,
            max_new_tokens=self.config.rl.max_new_tokens,
            temperature=self.config.rl.temperature,
            frozen=self.frozen,
        )
        return Sampler(draw, self.tokenizer, verify)
