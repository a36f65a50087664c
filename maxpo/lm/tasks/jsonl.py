r"""The user's own problems, from JSON-lines files.

GSM8K's format works as it is: each line is an object such as
`{"question": "What is 6 times 7?", "answer": "6 * 7 = 42\n#### 42"}`.
"""

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

from maxpo.lm.tasks.answers import (
    LONGEST,
    gold_number,
    is_mathematics,
    math_verifier,
    numeric_answer,
    numeric_verifier,
)
from maxpo.lm.tasks.text import Problem, TextTask, Verifier, load_verifier

__all__ = ["make_jsonl_task", "math_verifier", "numeric_answer", "numeric_verifier"]

# What the answers of problems must be for the verifiers that are built in.
_GOLD: dict[Verifier, tuple[str, str, Callable[[str], bool]]] = {
    numeric_verifier: (
        "numeric",
        "a number and nothing else",
        lambda text: gold_number(text) is not None,
    ),
    math_verifier: ("math", "mathematics, such as LaTeX", is_mathematics),
}

_OWN_LINE = "write each object on a line of its own"
_GZIP = b"\x1f\x8b"
# How files begin that are no JSON lines.
_MAGIC = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    _GZIP: "gzip within gzip",
}


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

    Files are UTF-8, plain or compressed by gzip.

    Args:
      train_path: Problems to train on.
      held_out_path: Problems to measure on.
      prompt_field: Where an object has its prompt, a string.
      answer_field: Where it has its answer, a string or a number; None where there is none.
      template: Template of the prompt that the model reads, with `{prompt}` in it.
      verifier: "numeric" compares numbers exactly, see `maxpo.lm.tasks.answers.numeric_answer`.
        "math" compares mathematics in LaTeX, see `maxpo.lm.tasks.answers.math_verifier`. Or
        "module:function": your own function of a `Problem`, whose `entry` is the object of the
        line, and a completion.

    Raises:
      ImportError: If the verifier is "math" and its package is missing.
      ValueError: If a file is missing, empty or malformed (with file and line), an answer is
        nothing that the verifier can compare with, or the verifier cannot be imported.
    """
    if "{prompt}" not in template:
        raise ValueError(f"template: expected {{prompt}} in it, got {template!r}")
    verify = load_verifier(verifier, numeric=numeric_verifier, math=math_verifier)
    gold = _GOLD.get(verify)
    if gold is not None and answer_field is None:
        raise ValueError(f"the {gold[0]} verifier needs answer_field, got None")

    def read(path: str | PathLike[str]) -> tuple[Problem, ...]:
        problems = []
        for place, entry in _read_objects(Path(path)):
            prompt = _get(entry, prompt_field, place)
            if not isinstance(prompt, str) or not prompt:
                raise ValueError(
                    f"{place}: field {prompt_field!r}: expected a text, got {_shown(prompt)}"
                )
            answer = "" if answer_field is None else _get(entry, answer_field, place)
            if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
                raise ValueError(
                    f"{place}: field {answer_field!r}: expected a text or a number,"
                    f" got {_shown(answer)}"
                )
            if gold is not None and not gold[2](str(answer)):
                raise ValueError(
                    f"{place}: the {gold[0]} verifier expected {gold[1]} in field"
                    f" {answer_field!r}, got {_shown(answer)}"
                )
            problems.append(Problem(template.replace("{prompt}", prompt), str(answer), entry))
        if not problems:
            raise ValueError(f"{path} is empty: expected one JSON object a line")
        return tuple(problems)

    return TextTask(Path(train_path).stem, read(train_path), read(held_out_path), verify)


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, each after its place, as "file:line"."""
    if not path.is_file():
        what = f"the folder {path}" if path.is_dir() else f"no file {path}"
        raise ValueError(f"{what}: expected JSON lines")
    place = f"{path}:1"
    try:
        for number, line in enumerate(_lines(path), start=1):
            place = f"{path}:{number}"
            if line.strip():
                yield place, _object(place, line)
    except (OSError, EOFError, zlib.error) as error:  # Cannot be read, or is damaged gzip.
        after = f"{place}: expected JSON lines, plain or in gzip, from here on"
        raise ValueError(f"{after}, got {error}") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, without a byte-order mark."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if file.read(len(_GZIP)) == _GZIP:
            stack.enter_context(unpacked := gzip.GzipFile(path))
            file = cast(IO[bytes], unpacked)
        file.seek(0)
        start = file.read(8)
        for magic, name in _MAGIC.items():
            if start.startswith(magic):
                raise ValueError(f"{path}:1: expected JSON lines in UTF-8, got {name}")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        yield from file


def _object(place: str, line: bytes) -> dict[str, Any]:
    """The object of a line, which must be strict JSON."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"{place}: expected a JSON object, got {what}")

    if b"\0" in line:
        raise refuse("NUL bytes, as of UTF-16 or of a damaged file; write UTF-8")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise refuse(f"what is no utf-8: byte {byte:#x} in column {error.start + 1}") from error
    try:
        entry = json.loads(
            text,
            object_pairs_hook=_without_twins,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
        if isinstance(entry, dict):
            # Half of what JSON writes as two \\u escapes; no file and no tokenizer takes it.
            json.dumps(entry, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        if text.startswith("["):
            raise refuse(f"the start of an array; {_OWN_LINE}") from error
        if not text.startswith("{"):
            raise refuse(f"the text {_shown(text)}") from error
        column = f"in column {error.colno} of {_shown(text)}"
        raise refuse(f"{error.msg} {column}; an object must be whole on its line") from error
    except UnicodeEncodeError as error:
        half = f"half a character, \\u{ord(error.object[error.start]):x}, after"
        before = error.object[max(0, error.start - 30) : error.start]
        raise refuse(f"{half} {before!r}; write both halves, or the character itself") from error
    except RecursionError as error:
        raise refuse("brackets that are nested too deeply") from error
    except ValueError as error:
        raise refuse(str(error)) from error
    if not isinstance(entry, dict):
        raise refuse(_shown(entry) + (f", an array; {_OWN_LINE}" if text[0] == "[" else ""))
    return entry


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twin!r} twice")
    return entry


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"an integer of {len(digits)} digits, more than {LONGEST}")
    return int(digits)


def _get(entry: dict[str, Any], field: str, place: str) -> Any:
    if field not in entry:
        raise ValueError(f"{place}: no field {field!r}; its fields are {list(entry)}")
    return entry[field]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
