"""Formulas as MathML, which browsers draw by themselves: no script, and nothing to fetch.

A command that is not known ends the build.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<latex>.*?)\\(?:\)|\])</(?P=tag)>', re.S
)

_UNKNOWN = re.compile(r">(\\\w+)<")


def on_page_content(content: str, **_: Any) -> str:
    """Replaces what `pymdownx.arithmatex` marked."""
    return _FORMULA.sub(_converted, content)


def _converted(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    latex = html.unescape(found["latex"]).strip()
    converted = convert(latex, display=display)
    if unknown := _UNKNOWN.search(converted):
        raise PluginError(f"mathml: expected commands with a MathML, got {unknown[1]} in {latex!r}")
    return converted
