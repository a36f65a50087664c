"""HTML of a report: text that cannot do anything, tables, and the page around them."""

import base64
import hashlib
import html
import unicodedata
from collections.abc import Sequence

from maxpo.lm.training._report_style import SCRIPT, STYLE

__all__ = ["details", "escape", "page", "percent", "shortened", "show", "table"]

MOST_CHARACTERS = 6000
# They change the order in which a browser shows the letters around them.
_DIRECTIONS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def escape(text: str) -> str:
    r"""Text that shows in HTML as what it is, whatever a model has written.

    Control characters, half surrogates and marks of direction become visible as their escapes.

    >>> print(escape('<b a="1">\x00\x1b[0m\ud800'))
    &lt;b a=&quot;1&quot;&gt;\x00\x1b[0m\ud800
    """
    return html.escape("".join(map(_visible, text)))


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    if character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs"):
        return character.encode("unicode_escape").decode()
    return character


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, without its middle if it is long.

    >>> shortened("abcdefghij", most=4)
    'ab … 6 characters left out … ij'
    """
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]} … {left_out:,} characters left out … {text[len(text) - half :]}"


def show(value: float | None) -> str:
    """A number with three digits, or a dash.

    >>> [show(value) for value in (0.12345, 12345.0, None)]
    ['0.123', '12345', '-']
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent; 0% and 100% are exact.

    >>> [percent(share) for share in (0, 0.001, 0.25, 0.9999, 1)]
    ['0%', '<1%', '25%', '>99%', '100%']
    """
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{100 * share:.0f}%"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> str:
    """A table that scrolls where it is too wide; numbers to the right."""
    kinds = [' class="number"' if right else "" for right in is_number]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    head = f"<thead><tr>{line(columns, 'th')}</tr></thead>" if any(columns) else ""
    return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    """A part that opens by a click; both arguments are HTML."""
    return f"<details><summary>{summary}</summary>\n{body}</details>"


def page(title: str, body: str) -> str:
    """The page. Whatever is in it, the browser runs no other script and loads nothing."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
