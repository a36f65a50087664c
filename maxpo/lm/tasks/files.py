r"""The user's own problems, from files: JSON lines or Parquet.

GSM8K's format works as it is: each line is an object such as
`{"question": "What is 6 times 7?", "answer": "6 * 7 = 42\n#### 42"}`.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from maxpo.lm.tasks._json_lines import read_json_lines
from maxpo.lm.tasks._parquet import is_parquet, read_parquet
from maxpo.lm.tasks.messages import make_messages
from maxpo.lm.tasks.text import Problem, TextTask, Verifier, shown
from maxpo.lm.tasks.verifiers import check_answer, comparing, find_verifier

__all__ = ["make_file_task"]

_Rows = Iterator[tuple[str, dict[str, Any]]]


def make_file_task(
    train_path: str | PathLike[str],
    held_out_path: str | PathLike[str],
    *,
    prompt_field: str = "question",
    answer_field: str | None = "answer",
    template: str = "{prompt}",
    verifier: str | Verifier = "numeric",
) -> TextTask:
    """Problems from two files or folders, one for each object or row.

    A file is one of these, whatever its name:

    * JSON lines: one object a line, in UTF-8, plain or compressed by gzip; blank lines are skipped.
    * Parquet, with the extra `parquet`: one row for each problem.

    A folder holds Parquet files, all of one split.

    Args:
      train_path: Problems to train on.
      held_out_path: Problems to measure on.
      prompt_field: Where an object has its prompt: a text, or a list of messages such as
        `[{"role": "user", "content": "6 * 7?"}]`, see `maxpo.lm.tasks.messages`.
      answer_field: Where it has its answer, a text or a number; None where there is none. Both
        fields may be within another, such as "reward_model.ground_truth", where verl's data has it.
      template: Template of the prompt that the model reads, with `{prompt}` in it; of messages that
        of the user's last one.
      verifier: One of `maxpo.lm.tasks.verifiers.BUILT_IN`, or "module:function": your own function
        of a `Problem`, whose `entry` is the whole object, and a completion. Or the function.

    Raises:
      ImportError: If the package is missing that Parquet or the verifier "math" needs.
      ValueError: If a file is missing, empty or malformed (with file and line), lacks a field, an
        answer is nothing that the verifier can compare with, or the verifier cannot be imported.
    """
    if "{prompt}" not in template:
        raise ValueError(f"template: expected {{prompt}} in it, got {template!r}")
    verify = find_verifier(verifier) if isinstance(verifier, str) else verifier
    if answer_field is None and (found := comparing(verify)):
        raise ValueError(f"the {next(iter(found))} verifier needs answer_field, got None")

    def problems_of(path: str | PathLike[str], rows: _Rows) -> tuple[Problem, ...]:
        problems = []
        for place, entry in rows:
            problem = _problem(place, entry, prompt_field, answer_field, template)
            check_answer(verify, problem, f"{place}: field {answer_field!r}")
            problems.append(problem)
        if not problems:
            raise ValueError(f"{path} is empty: expected one JSON object a line, or rows")
        return tuple(problems)

    fields = [field for field in (prompt_field, answer_field) if field is not None]
    # Both are opened before one is read, which may take long.
    train, held_out = _open(train_path, fields), _open(held_out_path, fields)
    return TextTask(
        Path(train_path).stem,
        problems_of(train_path, train),
        problems_of(held_out_path, held_out),
        verify,
    )


def _open(path: str | PathLike[str], fields: Collection[str]) -> _Rows:
    """What yields objects after their places."""
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"no file {path}: expected JSON lines or Parquet")
    try:
        has_rows = path.is_dir() or is_parquet(path)
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read, got {error}") from error
    return read_parquet(path, fields) if has_rows else read_json_lines(path)


def _problem(
    place: str,
    entry: Mapping[str, Any],
    prompt_field: str,
    answer_field: str | None,
    template: str,
) -> Problem:
    prompt = _get(entry, prompt_field, place)
    answer = "" if answer_field is None else _get(entry, answer_field, place)
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise _unexpected(place, answer_field, "a text or a number", answer)
    if isinstance(answer, float) and not math.isfinite(answer):
        raise _unexpected(place, answer_field, "a text or a finite number", answer)
    if isinstance(prompt, list):
        try:
            messages = make_messages(prompt, template)
        except ValueError as error:
            raise ValueError(f"{place}: field {prompt_field!r}: {error}") from error
        asked = [message["content"] for message in messages if message["role"] == "user"]
        return Problem(asked[-1], str(answer), entry, messages)
    if not isinstance(prompt, str) or not prompt:
        raise _unexpected(place, prompt_field, "a text or messages", prompt)
    return Problem(template.replace("{prompt}", prompt), str(answer), entry)


def _get(entry: Mapping[str, Any], field: str, place: str) -> Any:
    """The value of a field, or of one within another: "reward_model.ground_truth"."""
    if field in entry:
        return entry[field]
    outer, dot, inner = field.partition(".")
    if dot and isinstance(entry.get(outer), Mapping):
        return _get(entry[outer], inner, f"{place}: in {outer!r}")
    raise ValueError(f"{place}: no field {field!r}; its fields are {list(entry)}")


def _unexpected(place: str, field: str | None, expected: str, got: object) -> ValueError:
    return ValueError(f"{place}: field {field!r}: expected {expected}, got {shown(got)}")
