"""Parts of files whose records are not samples of one model: filters, splits and steps."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from maxpo.evaluate._fields import value_of
from maxpo.runs import UsageError

__all__ = ["Part", "choose_parts", "part_fields", "part_of"]

Part = tuple[Any, ...]

# Two values of one of these under a label are two extractions of the same answers, two sets of
# problems, or two states of a model: together they would be counted as samples of one.
PARTING = ("filter", "split", "step")
ALL, LAST = "*", "last"


def part_fields(chosen: Mapping[str, str]) -> tuple[str, ...]:
    """The fields whose values make the parts: those of `PARTING`, and those that are chosen by."""
    return tuple(dict.fromkeys((*PARTING, *chosen)))


def part_of(record: Mapping[str, Any], fields: tuple[str, ...], *, nested: bool) -> Part:
    """The part that a record is in: the values of the fields.

    Args:
      record: The record.
      fields: The fields.
      nested: Whether any of them may be a field within a field, which takes longer.
    """
    values = [value_of(record, field) for field in fields] if nested else map(record.get, fields)
    return tuple([json.dumps(x) if type(x) in (list, dict) else x for x in values])


def choose_parts(
    parts: Iterable[Part], fields: tuple[str, ...], chosen: Mapping[str, str], name: str
) -> list[Part]:
    """The parts of a label's files that are evaluated.

    Args:
      parts: Those that any of them has.
      fields: `part_fields(chosen)`.
      chosen: Field to value, as text; `last` is the largest number that the field has in what the
        others leave, and `*` any value.
      name: What errors call the files.

    Raises:
      UsageError: If nothing is left, or several values of a field of `PARTING` that is not chosen.
    """
    kept = list(parts)
    # The last step is that of the chosen split.
    for field, value in sorted(chosen.items(), key=lambda item: item[1] == LAST):
        if value == ALL:
            continue
        place = fields.index(field)
        values = [part[place] for part in kept]
        wanted = max(filter(_is_number, values), default=None) if value == LAST else value
        kept = [part for part in kept if part[place] is not None and _is(part[place], wanted)]
        if not kept:
            found = _shown(x for x in values if x is not None) or "records without that field"
            raise UsageError(f"{name}: expected records of {field}={value}, got {found}")
    for place, field in enumerate(fields):
        values = [part[place] for part in kept]
        if field not in chosen and len(set(values)) > 1:
            raise UsageError(
                f"{name}: expected records of one {field}, got {_shown(values)}; "
                f"choose one by --where={field}=VALUE"
            )
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is(value: Any, wanted: Any) -> bool:
    return value == wanted or wanted in (str(value), json.dumps(value))


def _shown(values: Iterable[Any]) -> str:
    """A few different values, as JSON."""
    different = [json.dumps(value) for value in dict.fromkeys(values)]
    return ", ".join(different[:6]) + (", ..." if len(different) > 6 else "")
