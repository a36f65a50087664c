"""How fast a whole step of reinforcement learning is, beside other trainers that are installed.

A step is all that a trainer does from one batch of prompts to the next: it samples, scores, makes
advantages, updates and logs. Steps are timed in turns in one process. Sampling is what a trainer
does to get from prompts to texts; the rest is mostly the update.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from maxpo import runs
from maxpo._extras import MissingExtraError
from maxpo.studies.speed.held_loop import HeldLoop, Seconds
from maxpo.studies.speed.trainers import TRAINERS, Letters, Reward, model_config
from maxpo.studies.speed.turns import turns

__all__ = ["CACHES", "PACKAGES", "Step", "check_config", "rows", "seconds", "timed_steps"]

PACKAGES = {"trl": ("trl", "torch", "transformers"), "tunix": ("tunix", "transformers")}
"""What each of the other trainers is made of."""

CACHES = ("dynamic", "static")


class Step(NamedTuple):
    """What a step took.

    Attributes:
      whole: The whole step.
      sampling: From prompts to texts.
    """

    whole: Seconds
    sampling: Seconds

    @property
    def rest(self) -> Seconds:
        """Scores, advantages and the update."""
        return self.whole - self.sampling

    def flat(self) -> dict[str, float]:
        """Seconds by what took them and on which clock."""
        return {
            f"{part}, {clock}": getattr(getattr(self, part), clock)
            for clock in ("wall", "processor")
            for part in ("whole", "sampling", "rest")
        }


def check_config(config: ConfigDict) -> list[str]:
    """Checks a config, before any work.

    Returns:
      The trainers to time, this library's first. One that is not installed is left out, and said
      to be, unless the config asks for it.

    Raises:
      MissingExtraError: If a trainer is asked for and packages are missing.
      ValueError: If a number is out of range, or trainers are to be compared away from the CPU.
    """
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "repeats": 1,
            "prompts": 1,
            "group_size": 2,
            "prompt_length": 1,
            "new_tokens": 1,
            "starts": 0,
            **{f"micro_batches.{name}": 1 for name in TRAINERS},
            "model.vocab_size": 4,
        },
    )
    model_config(config)
    for name, parts in config.micro_batches.items():
        runs.check_divisor(f"micro_batches.{name}", parts, of="prompts", whole=config.prompts)
    if config.trl_cache not in CACHES:
        raise ValueError(f"trl_cache: expected one of {CACHES}, got {config.trl_cache!r}")
    others = [name for name in PACKAGES if _is_timed(name, config[name])]
    if others and jax.default_backend() != "cpu":
        raise ValueError(
            f"{others[0]}: expected False where JAX runs on the {jax.default_backend()}, as the "
            "others are set up for the CPU"
        )
    return ["maxpo", *others]


def _is_timed(name: str, asked: bool | None) -> bool:
    if asked is False:
        return False
    missing = [part for part in PACKAGES[name] if importlib.util.find_spec(part) is None]
    if not missing:
        return True
    hint = f"needs {', '.join(missing)}: pip install 'maxpo[{name}]'"
    if asked:
        raise MissingExtraError(f"the comparison with {name} {hint}")
    runs.say(f"{name} is left out: it {hint}")
    return False


def timed_steps(
    config: ConfigDict, names: Sequence[str], folder: Path
) -> Iterator[tuple[str, Step]]:
    """Does a step of each trainer in each round; the first round, which compiles, is not counted.

    Args:
      config: That of the benchmark.
      names: Trainers.
      folder: For what they write; they may leave it empty.

    Yields:
      The trainer and what its step took.
    """
    letters = Letters(config.model.vocab_size)
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], Any]] = {}
        for name in names:
            reward = Reward()
            loop = TRAINERS[name](config, letters, reward, folder / name)
            stack.enter_context(loop)
            calls[name] = partial(_step, name, loop, reward, config.new_tokens)
        for name, _, step in turns(calls, config.repeats):
            yield name, step


def _step(name: str, loop: HeldLoop, reward: Reward, new_tokens: int) -> Step:
    reward.lengths.clear()
    whole = loop.step()
    if max(reward.lengths) < new_tokens:
        raise ValueError(
            f"{name}: every sample ended early, so that the times would say nothing: expected more "
            "samples, another seed or a larger vocabulary"
        )
    return Step(whole, loop.sampling)


def seconds(steps: Mapping[str, Sequence[Step]]) -> dict[str, dict[str, float]]:
    """Medians by trainer, and by what took the time."""
    flat = {name: [step.flat() for step in taken] for name, taken in steps.items()}
    return {
        name: {what: float(np.median([each[what] for each in taken])) for what in taken[0]}
        for name, taken in flat.items()
    }


def rows(
    medians: Mapping[str, Mapping[str, float]], starts: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Rows of the table, with how many times as long the other one takes.

    Args:
      medians: Of `seconds`.
      starts: Seconds from the command to the first update, those of a "cold start" first.
    """
    table = []

    def add(what: str, ours: float, name: str = "-", other: float | None = None) -> None:
        ratio = None if other is None else other / ours
        row = {"seconds of": what, "maxpo": ours, "compared": other, "ratio": ratio}
        table.append({**row, "compared with": name})

    others = {name: of for name, of in medians.items() if name != "maxpo"}
    for what, ours in medians["maxpo"].items():
        for name, of in others.items():
            add(what, ours, name, of[what])
        if not others:
            add(what, ours)
    cold = "cold start"
    for what, taken in starts.items():
        other = (what, None) if what == cold else (cold, float(np.median(starts[cold])))
        add(what, float(np.median(taken)), other[0] if other[1] else "-", other[1])
    return table
