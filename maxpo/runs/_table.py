"""Rows of results as an aligned plain-text table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from maxpo.runs._files import NOT_FINITE

MOST_DECIMALS = 8

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]


def format_table(rows: Rows) -> str:
    """Returns rows as text, one line each under a header; numbers to the right.

    Args:
      rows: a sequence of rows, each a mapping from column to value, or a mapping from the row's
        name to the row. Columns come in the order in which they are met; a value a row does not
        have is shown as "-". Floats are shown with 4 significant digits; "NaN" and "Infinity", as
        a summary has them, are floats. A column `x_sem` is no column of its own but the standard
        error after `x`, or "-" where there is none, as of the mean of one number. Two digits of the
        error count, and the value has as many decimals.

    >>> print(format_table({"maxpo": {"max@4": 0.91234, "seeds": 32}, "grpo": {"max@4": 0.5}}))
            max@4  seeds
    maxpo  0.9123     32
    grpo   0.5000      -
    >>> print(format_table([{"reward": 0.51234, "reward_sem": 0.00123}]))
    reward
    0.5123 ± 0.0012
    """
    columns, cells, is_number = table_cells(rows)
    lines = [columns, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in lines
    )


def table_cells(rows: Rows) -> tuple[list[str], list[list[str]], list[bool]]:
    """Returns what `format_table` aligns: columns, the cells of each row, and which are numbers.

    Args:
      rows: as for `format_table`.

    >>> table_cells({"maxpo": {"max@4": 0.91234}})
    (['', 'max@4'], [['maxpo', '0.9123']], [False, True])
    """
    if isinstance(rows, Mapping):
        rows = [{"": name, **row} for name, row in rows.items()]
    records = [_with_errors({key: _to_float(x) for key, x in row.items()}) for row in rows]
    columns = list(dict.fromkeys(column for record in records for column in record))
    cells = [[_cell(record.get(column)) for column in columns] for record in records]
    is_number = [
        all(isinstance(record.get(column), int | float | None) for record in records)
        for column in columns
    ]
    return columns, cells, is_number


def _with_errors(row: Mapping[str, Any]) -> dict[str, Any]:
    """Puts standard errors after their values."""
    merged = {}
    for column, value in row.items():
        if column.endswith("_sem") and column.removesuffix("_sem") in row:
            continue
        merged[column] = value
        if f"{column}_sem" in row and value is not None:
            merged[column] = _value_and_error(value, row[f"{column}_sem"])
    return merged


def _value_and_error(value: Any, error: Any) -> str:
    """Two significant digits of the error, and as many decimals of the value."""
    if error is None or (isinstance(error, float) and math.isnan(error)):
        return f"{_cell(value)} ± -"
    if not isinstance(error, float) or not isinstance(value, float):
        return f"{_cell(value)} ± {error}"
    decimals = 1 - math.floor(math.log10(error)) if 0 < error < math.inf else MOST_DECIMALS
    if decimals < MOST_DECIMALS and abs(value) < 1e9:
        decimals = max(decimals, 0)
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{_cell(value)} ± {error:.2g}"


def _to_float(value: Any) -> Any:
    """The number that a string of a summary stands for."""
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if 1e4 <= abs(value) < 1e9:
        return f"{value:.0f}"
    return f"{value:#.4g}".rstrip(".")
