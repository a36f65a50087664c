"""The work of the study: every method at every learning rate, from every start."""

from collections.abc import Sequence
from functools import cache, partial

import jax
from flax import nnx
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.training.checks import check_b2
from maxpo.lm.training.named_optimizers import check_optimizer
from maxpo.methods import Method, parse_methods
from maxpo.studies.jobs import Job, Row
from maxpo.studies.lm_centering.policy import model_shape
from maxpo.studies.lm_centering.training import make_trainer

__all__ = ["check_config", "make_jobs", "read_methods"]


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a value of the config makes no sense, naming it."""
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "seeds": 4,  # Two halves, each with an error.
            "fine_tuning": 1,
            "evaluate_every": 1,
            "samples": 1,
            "eval_ks": 1,
            "variance_prompts": 1,
            "puzzle.digits": 1,
            "puzzle.least": 10,
            "puzzle.held_out": 1,
            "sft.batch_size": 1,
            "sft.warmup_steps": 0,
            "sft.b2": 0,
            "sft.weight_decay": 0,
            "rl.steps": 1,
            "rl.prompts": 1,
            "rl.group_size": 2,
            "rl.warmup_steps": 0,
            "rl.b2": 0,
            "rl.weight_decay": 0,
        },
        above={
            "learning_rates": 0,
            "sft.learning_rate": 0,
            "sft.final_rate": 0,
            "sft.max_gradient_norm": 0,
            "rl.temperature": 0,
            "rl.max_gradient_norm": 0,
        },
    )
    for part in ("sft", "rl"):
        check_b2(f"{part}.b2", config[part].b2)
        check_optimizer(part, config[part])
    _check_evaluation(config)
    read_methods(config)
    for field in ("learning_rates", "fine_tuning"):
        values = config[field]
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{field}: expected different numbers, got {values}")
    least, most = config.puzzle.least, config.puzzle.most
    if not least <= most <= 99:
        raise ValueError(f"puzzle.most: expected a number from {least} to 99, got {most}")
    puzzles = 10 * (most - least + 1)
    if config.puzzle.held_out >= puzzles:
        raise ValueError(
            f"puzzle.held_out: expected less than all {puzzles}, got {config.puzzle.held_out}"
        )
    model_shape(config)


def _check_evaluation(config: ConfigDict) -> None:
    if config.rl.steps % config.evaluate_every:
        raise ValueError(
            f"rl.steps: expected a multiple of evaluate_every = {config.evaluate_every}, got "
            f"{config.rl.steps}"
        )
    if max(config.eval_ks, default=0) > config.samples:
        raise ValueError(
            f"eval_ks: expected at most samples = {config.samples}, got {config.eval_ks}"
        )
    if config.eval_k not in config.eval_ks:
        raise ValueError(f"eval_k: expected one of {config.eval_ks}, got {config.eval_k}")


def read_methods(config: ConfigDict) -> list[Method]:
    """The config's methods, MaxPO first.

    Raises:
      ValueError: As `parse_methods`, or if the first is not MaxPO or one has its own rate.
    """
    methods = parse_methods(config.methods, group_size=config.rl.group_size)
    if methods[0].estimator != "maxpo":
        raise ValueError(f"methods: expected maxpo first, got {config.methods[0]!r}")
    if any(method.learning_rate for method in methods):
        raise ValueError("methods: expected no learning_rate, which is what is varied here")
    return methods


def make_jobs(config: ConfigDict) -> list[Job]:
    """The work in order, of all seeds each.

    First one job for each start, rate and method, which trains; then one for each start, which
    measures the variance of gradients there.
    """
    trainer = make_trainer(config)
    start = cache(trainer.start)  # Made when the first of its jobs is left to do.

    # Keys come from the seed and not from the job: all jobs share them, which pairs methods.
    def train(_: jax.Array, steps: int, number: int, rate: float) -> list[Row]:
        params: nnx.State = start(steps)
        return [
            {
                "fine_tuning": steps,
                "method": labels[number],
                "learning_rate": rate,
                "in_format": trainer.format_share(params).mean(),
                "pass_at_k": trainer.train(params, number, rate),
            }
        ]

    def measure(_: jax.Array, steps: int) -> list[Row]:
        measured = trainer.measure(start(steps))
        return [{"section": "variance", "fine_tuning": steps, **measured._asdict()}]

    labels: Sequence[str] = [method.label for method in read_methods(config)]
    trained = [
        partial(train, steps=steps, number=number, rate=rate)
        for steps in config.fine_tuning
        for rate in config.learning_rates
        for number in range(len(labels))
    ]
    return [*trained, *(partial(measure, steps=steps) for steps in config.fine_tuning)]
