r"""The user's own problems, from JSON-lines files.

GSM8K's format works as it is: each line is an object such as
`{"question": "What is 6 times 7?", "answer": "6 * 7 = 42\n#### 42"}`.
"""

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

from maxpo.tasks.text import Problem, TextTask, load_verifier, text_only

# A sign counts where it does not follow an operand: the last number of "10-5" is 5.
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\]}.])[-+\N{MINUS SIGN}]\s?)?
    [$€£¥]?\s?
    (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+(?!\d)|(?=\.\d))
    (?P<fraction>\.\d+)?
    (?P<exponent>[eE][-+]?\d{1,3}(?!\d))?
    (?:\s?/\s?(?P<denominator>\d+)(?![\d.]))?
    """,
    re.VERBOSE,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")


def numeric_answer(text: str) -> Fraction | None:
    r"""The number that a text answers with, or None.

    That is the first number after the last "####"; without one, the last number in the last
    `\boxed{}`; without one, the last number of the text. Thousands separators, currency and percent
    signs are dropped (50% is 50), and a fraction is its value.

    >>> numeric_answer("So she pays $1,250.50.")
    Fraction(2501, 2)
    >>> numeric_answer(r"\boxed{\frac{3}{4}} of 12")
    Fraction(3, 4)
    """
    text = _LATEX_FRACTION.sub(r" \1/\2 ", text.replace("\\$", "$").replace("{,}", ","))
    _, mark, after = text.rpartition("####")
    if mark:
        match = _NUMBER.search(after)
        return None if match is None else _value(match)
    boxed = _BOXED.findall(text)
    matches = list(_NUMBER.finditer(boxed[-1] if boxed else text))
    return _value(matches[-1]) if matches else None


@text_only
def numeric_verifier(problem: Problem, completion: str) -> float:
    """1 where a completion answers with the same number as the problem's answer, else 0."""
    answer = numeric_answer(completion)
    return float(answer is not None and answer == numeric_answer(problem.answer))


def make_jsonl_task(
    train_path: str | PathLike[str],
    held_out_path: str | PathLike[str],
    *,
    prompt_field: str = "question",
    answer_field: str | None = "answer",
    template: str = "{prompt}",
    verifier: str = "numeric",
) -> TextTask:
    """Problems from two JSON-lines files: one object a line, blank lines are skipped.

    Args:
      train_path: Problems to train on.
      held_out_path: Problems to measure on.
      prompt_field: Where an object has its prompt, a string.
      answer_field: Where it has its answer, a string or a number; None where there is none.
      template: Of the prompt that the model reads, with `{prompt}` in it.
      verifier: "numeric" compares numbers exactly, see `numeric_answer`. Or "module:function": your
        own function of a `Problem`, whose `entry` is the object of the line, and a completion.

    Raises:
      ValueError: if a file is missing, empty or malformed (with file and line), or the verifier
        cannot be imported.
    """
    if "{prompt}" not in template:
        raise ValueError(f"template must have {{prompt}} in it, got {template!r}")
    verify = load_verifier(verifier, numeric=numeric_verifier)
    if verify is numeric_verifier and answer_field is None:
        raise ValueError("the numeric verifier needs answer_field, got None")

    def read(path: str | PathLike[str]) -> tuple[Problem, ...]:
        problems = []
        for place, entry in _read_objects(Path(path)):
            prompt = _get(entry, prompt_field, place)
            if not isinstance(prompt, str) or not prompt:
                raise ValueError(
                    f"{place}: field {prompt_field!r} must be a text, got {_shown(prompt)}"
                )
            answer = "" if answer_field is None else _get(entry, answer_field, place)
            if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
                raise ValueError(
                    f"{place}: field {answer_field!r} must be a text or a number,"
                    f" got {_shown(answer)}"
                )
            if verify is numeric_verifier and numeric_answer(str(answer)) is None:
                raise ValueError(
                    f"{place}: the numeric verifier expected a number in field {answer_field!r},"
                    f" got {_shown(answer)}"
                )
            problems.append(Problem(template.replace("{prompt}", prompt), str(answer), entry))
        if not problems:
            raise ValueError(f"{path} is empty: expected one JSON object a line")
        return tuple(problems)

    return TextTask(Path(train_path).stem, read(train_path), read(held_out_path), verify)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number of a match of `_NUMBER`; None where it is none, such as 1/0."""
    whole = match["whole"].replace(",", "") or "0"
    try:
        value = Fraction(whole + (match["fraction"] or "") + (match["exponent"] or ""))
        value /= int(match["denominator"] or 1)
    except (ValueError, ZeroDivisionError):  # ValueError: thousands of digits.
        return None
    return value if (match["sign"] or "+").strip() == "+" else -value


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, each after its place, as "file:line"."""
    if not path.is_file():
        raise ValueError(f"no file {path}: expected JSON lines")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                entry = json.loads(line)
            except ValueError as error:  # Not JSON, or not UTF-8.
                raise ValueError(f"{place}: expected a JSON object, got {error}") from error
            if not isinstance(entry, dict):
                raise ValueError(f"{place}: expected a JSON object, got {_shown(entry)}")
            yield place, entry


def _get(entry: dict[str, Any], field: str, place: str) -> Any:
    if field not in entry:
        raise ValueError(f"{place}: no field {field!r}; its fields are {list(entry)}")
    return entry[field]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
