"""Any data set of the package `reasoning-gym`, with its own scorer.

See "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable Rewards"
(https://arxiv.org/abs/2505.24760).
"""

import dataclasses
import difflib
import json
import os
import pickle
import string
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maxpo._extras import missing_extra
from maxpo.lm.tasks._strict_json import parse_json
from maxpo.lm.tasks.text import Problem, TextTask, Verifier, shown
from maxpo.lm.tasks.verifiers import check_answer, find_verifier

__all__ = [
    "MAX_DRAWS_IN_VAIN",
    "MOST_AT_A_TIME",
    "SECONDS_OF_A_REQUEST",
    "Progress",
    "ReasoningVerifier",
    "make_reasoning_task",
    "parse_options",
    "reasoning_names",
]

# Draws without a new problem until a data set counts as exhausted.
MAX_DRAWS_IN_VAIN = 1000
# Entries that are asked for in one request.
MOST_AT_A_TIME = 64
SECONDS_OF_A_REQUEST = 0.1


class Progress(Protocol):
    """Yields items and shows how many are done, as `maxpo.runs.progress`."""

    def __call__(self, items: range, /, *, unit: str) -> Iterable[int]:
        """The items, called `unit` in what is shown."""


class ReasoningVerifier:
    """Rewards of a data set's own scorer.

    Pickles as its arguments, so sending it to another process costs little; it is built again
    there.

    Args:
      dataset: Name of the data set.
      options: Fields of its configuration. Some scorers depend on them.
      threshold: None keeps the scorer's partial scores. A number makes rewards 0/1: 1 where the
        score reaches it.
    """

    def __init__(self, dataset: str, options: Mapping[str, Any], threshold: float | None):
        self._arguments = (dataset, dict(options), threshold)
        self._dataset = _make_dataset(dataset, options, seed=0)
        self._threshold = threshold

    def __reduce__(self) -> tuple[Any, ...]:
        return ReasoningVerifier, self._arguments

    def __call__(self, problem: Problem, completion: str) -> float:
        """Score of a completion, without the white space around it."""
        score = float(self._dataset.score_answer(completion.strip(), problem.entry))
        return score if self._threshold is None else float(score >= self._threshold)


def make_reasoning_task(
    dataset: str,
    *,
    train_size: int,
    held_out_size: int,
    seed: int,
    template: str = "{question}",
    answer_template: str = "{answer}",
    options: str | Mapping[str, Any] = "",
    threshold: float | None = None,
    verifier: str | Verifier = "scorer",
    progress: Progress = lambda items, *, unit: items,
) -> TextTask:
    """Problems of a data set of `reasoning-gym`. Needs `pip install 'maxpo[lm]'`.

    All prompts differ, within and across the two sets, which come from seeds of their own. The
    held-out problems do not depend on `train_size`. Nor do problems depend on the process: they are
    made in one of its own, with a fixed PYTHONHASHSEED, generator and date.

    Templates are those of `str.format`, over the fields of an entry: `question`, `answer` and
    `metadata`. The format of a list is what joins its items: `{metadata[numbers]:,}` is "3,5,8".
    Of a table it joins the rows: `{metadata[puzzle]:/}` is "1400/0032". A short prompt is what a
    small model needs; the question itself is a paragraph of English.

    Some scorers evaluate completions as Python code: run them where nothing can be harmed.

    Args:
      dataset: Name of the data set; `reasoning_names()` lists them.
      train_size: Number of problems to train on.
      held_out_size: Number of problems to measure on.
      seed: Which problems. Same arguments, same problems.
      template: Template of the prompt.
      answer_template: Template of the answer, for supervised training.
      options: Fields of the data set's configuration, without `seed` and `size`; see
        `parse_options`.
      threshold: None keeps partial scores. A number makes rewards 0/1, 1 where the score reaches
        it: many scorers give a little for a wrong answer (countdown 0.01 or 0.05), and pass@k
        needs 0/1. 1.0 counts right answers.
      verifier: "scorer", the data set's own. One of `maxpo.lm.tasks.verifiers.BUILT_IN`, which
        compares with what `answer_template` gives. Or "module:function": your own, called with a
        Problem and a completion, such as "maxpo.lm.tasks.countdown:television_score". Or the
        function.
      progress: Shows how many problems are made, such as `maxpo.runs.progress`: some data sets make
        no more than a few hundred a second.

    Raises:
      MissingExtraError: If the package is missing.
      ValueError: If the data set, an option, a field of a template or the verifier is unknown, an
        answer is nothing that the verifier can compare with, or the data set has too few different
        problems.
    """
    options = parse_options(options, dataset)
    for name, size in (("train_size", train_size), ("held_out_size", held_out_size)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number in (0, 1] or None, got {threshold}")
    if threshold is not None and verifier != "scorer":
        raise ValueError(
            f"threshold: expected None for any verifier but 'scorer', got {threshold} with "
            f"{verifier!r}"
        )

    scorer = ReasoningVerifier(dataset, options, threshold)
    verify = find_verifier(verifier, scorer=scorer) if isinstance(verifier, str) else verifier
    prompts: set[str] = set()
    # Problem i of a data set's seed s is problem 0 of seed s + i, so neighboring seeds overlap.
    held_out_seed, train_seed = np.random.SeedSequence(seed).generate_state(2).tolist()

    def draw(size: int, seed: int, unit: str, entries: _Entries) -> tuple[Problem, ...]:
        found = _new_problems(
            entries.of(dataset, options, seed), template, answer_template, prompts
        )
        problems: list[Problem] = []
        for _ in progress(range(size), unit=unit):
            problem = next(found, None)
            if problem is None:
                raise ValueError(
                    f"{dataset} with options {options} has too few different prompts: found"
                    f" {len(prompts)}, expected {train_size} to train on and {held_out_size} held"
                    " out; ask for fewer, or widen the options or the template"
                )
            check_answer(verify, problem, f"{dataset}: answer to {shown(problem.prompt)}")
            problems.append(problem)
        return tuple(problems)

    with _Entries() as entries:
        held_out = draw(held_out_size, held_out_seed, "held-out problems", entries)
        train = draw(train_size, train_seed, "problems", entries)
    return TextTask(dataset, train, held_out, verify)


def reasoning_names() -> tuple[str, ...]:
    """Names of the data sets that `make_reasoning_task` knows, sorted."""
    return tuple(sorted(_registry()))


def parse_options(options: str | Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Options of a data set, with tuples where its configuration has them: JSON knows only lists.

    Args:
      options: By name; or JSON text of an object, as on a command line: `'{"max_terms": 3}'`. None
        are "", too.
      dataset: Name of the data set.

    Raises:
      MissingExtraError: If reasoning-gym is missing.
      ValueError: If the text is no JSON object, or the data set or an option is unknown.
    """
    found = _object(options) if isinstance(options, str) else dict(options)
    _, config_class = _find(dataset)
    _check_names(dataset, config_class, found)
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name in found:
            # Some say list and have a tuple.
            kind = tuple if isinstance(field.default, tuple) else kinds[field.name]
            found[field.name] = _with_tuples(found[field.name], kind)
    return found


def _object(text: str) -> dict[str, Any]:
    expected = """options: expected a JSON object such as '{"max_terms": 3}'"""
    try:
        value = parse_json(text or "{}")
    except json.JSONDecodeError as error:
        where = f"{error.msg} in column {error.colno} of {shown(text)}"
        raise ValueError(f"{expected}, got {where}") from error
    except ValueError as error:
        raise ValueError(f"{expected}, got {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{expected}, got {shown(value)}")
    return value


def _with_tuples(value: Any, kind: Any) -> Any:
    """A list as what is annotated: a tuple, or a list of tuples."""
    if not isinstance(value, list):
        return value
    of_items = (*typing.get_args(kind), None)[0]
    items = [_with_tuples(item, of_items) for item in value]
    return tuple(items) if tuple in (kind, typing.get_origin(kind)) else items


class _Entries:
    """A process that makes entries of data sets. A context manager.

    Not this process: the order of sets depends on its PYTHONHASHSEED, which cannot be changed, and
    seeding the generators that data sets share would change what else draws from them.
    """

    def __init__(self) -> None:
        program = Path(__file__).with_name("_reasoning_entries.py")
        self._process = subprocess.Popen(
            # Not the program's folder but ours on the path.
            [sys.executable, "-P", "-W", "ignore", str(program)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                "PYTHONHASHSEED": "0",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which ends that one.
        )

    def __enter__(self) -> "_Entries":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def of(
        self, dataset: str, options: Mapping[str, Any], seed: int
    ) -> Iterator[Mapping[str, Any] | None]:
        """Entries of a data set, None where its generator gives up."""
        start, size = 0, 1
        while True:
            began = time.monotonic()
            found = self._request((dataset, dict(options), seed, start, start + size))
            start += size
            # Many at a time, but few where they take long: progress is shown, and some are unused.
            is_fast = time.monotonic() - began < SECONDS_OF_A_REQUEST
            size = min(2 * size, MOST_AT_A_TIME) if is_fast else max(1, size // 2)
            yield from found

    def _request(self, request: tuple[Any, ...]) -> list[Mapping[str, Any] | None]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            found, message = pickle.load(self._process.stdout)
        except (EOFError, OSError) as error:
            status = self._process.wait()
            raise RuntimeError(f"{request[0]}: its process ended: status {status}") from error
        if message:
            raise RuntimeError(f"{request[0]} cannot be made: {message}")
        return list(found)


def _new_problems(
    entries: Iterator[Mapping[str, Any] | None],
    template: str,
    answer_template: str,
    prompts: set[str],
) -> Iterator[Problem]:
    """Problems whose prompts are not in the set, which takes them in; until too many are."""
    in_vain = 0
    while in_vain < MAX_DRAWS_IN_VAIN:
        entry = next(entries)
        in_vain += 1
        if entry is None:
            continue
        prompt = _fill("template", template, entry)
        if prompt not in prompts:
            prompts.add(prompt)
            yield Problem(prompt, _fill("answer_template", answer_template, entry), entry)
            in_vain = 0


def _registry() -> dict[str, tuple[Callable[..., Any], type]]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise missing_extra("task.kind=reasoning", "reasoning-gym", "lm", error) from error
    import reasoning_gym  # noqa: F401  (its data sets register themselves)

    return DATASETS


def _find(name: str) -> tuple[Callable[..., Any], Any]:
    """What makes a data set, and the class of its configuration."""
    registry = _registry()
    if name not in registry:
        close = difflib.get_close_matches(name, registry)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"unknown data set {name!r}; {hint}"
            "maxpo.lm.tasks.reasoning.reasoning_names() lists all of them"
        )
    return registry[name]


def _check_names(name: str, config_class: Any, options: Mapping[str, Any]) -> None:
    known = sorted({field.name for field in dataclasses.fields(config_class)} - {"seed", "size"})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown options of {name}: {unknown}; known are {known}")


def _make_dataset(name: str, options: Mapping[str, Any], seed: int) -> Any:
    make, config_class = _find(name)
    _check_names(name, config_class, options)
    try:
        config = config_class(**options, seed=seed)
        if hasattr(config, "validate"):
            config.validate()
        return make(config)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"bad options of {name}: {error}; got {dict(options)}") from error


class _Formatter(string.Formatter):
    """`str.format`, but the format of a list is what joins its items, and None is nothing."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:  # The answer, where a data set gives none.
            return ""
        if format_spec and isinstance(value, (list, tuple)):
            return format_spec.join(
                "".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
                for item in value
            )
        return super().format_field(value, format_spec)


def _fill(name: str, template: str, entry: Mapping[str, Any]) -> str:
    try:
        return _Formatter().vformat(template, (), entry)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        known = [*entry, *(f"metadata[{field}]" for field in entry["metadata"])]
        raise ValueError(
            f"{name} {template!r} cannot be filled in ({type(error).__name__}: {error});"
            f" known fields are {known}"
        ) from error
