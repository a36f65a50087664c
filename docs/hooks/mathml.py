"""Formulas as MathML, which browsers draw by themselves: no script, and nothing to fetch.

A formula that cannot be converted ends the build.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<latex>.*?)\\(?:\)|\])</(?P=tag)>', re.S
)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces what `pymdownx.arithmatex` marked."""
    return _FORMULA.sub(_converted, content)


def _converted(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    return convert(html.unescape(found["latex"]).strip(), display=display)
