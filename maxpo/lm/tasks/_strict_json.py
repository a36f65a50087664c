"""JSON as its standard has it: no field twice, no NaN, no integer without bounds."""

import json
from typing import Any

from maxpo.lm.tasks.answers import LONGEST

__all__ = ["parse_json"]


def parse_json(text: str) -> Any:
    """The value that a text stands for.

    Raises:
      JSONDecodeError: If it is no JSON, with the place.
      ValueError: If it has a field twice, NaN, an infinity, half a character, brackets that are
        nested too deeply, or an integer of more than `LONGEST` digits. What was found is the
        message: "the field 'a' twice".
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_twins,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
        # Half of what JSON writes as two \\u escapes; no file and no tokenizer takes it.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"half a character, \\u{ord(error.object[error.start]):x}, after"
        before = error.object[max(0, error.start - 30) : error.start]
        raise ValueError(
            f"{half} {before!r}; write both halves, or the character itself"
        ) from error
    except RecursionError as error:
        raise ValueError("brackets that are nested too deeply") from error
    return value


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
