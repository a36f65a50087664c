"""The reference of one config as a page of Markdown: a table of fields for each of its sections."""

import re
from pathlib import Path

from config_fields import Field, docstring, fields, fields_of_variants

__all__ = ["config_page", "names_elsewhere"]

_ROW = re.compile(r"^\| `([\w.]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", re.M)


def config_page(path: Path, names: dict[str, str]) -> str:
    """The page of a config.

    Args:
      path: Of its source.
      names: What each field is called elsewhere, for a column of its own; empty for none.
    """
    parts = [f"# `configs/{path.name}`", f"```text\n{docstring(path)}\n```"]
    notes, sections = _sections(fields(path))
    for name, held in sections.items():
        parts += [f"## `{name}`", notes.get(name, "")] if name else []
        parts.append(_table(held, names))
    others = fields_of_variants(path)
    parts += ["## Fields of some variants alone", _table(others, names)] if others else []
    return "\n\n".join(part for part in parts if part) + "\n"


def names_elsewhere(page: Path) -> dict[str, str]:
    """The names in TRL, verl and Tunix of each field in docs/names.md, each on a line."""
    found = {}
    for part in page.read_text(encoding="utf-8").split("\n## "):
        prefix = "rl." if "| `rl.` |" in part else ""
        for name, *others in _ROW.findall(part):
            pairs = zip(("TRL", "verl", "Tunix"), map(str.strip, others), strict=True)
            lines = [f"{trainer}: {other}" for trainer, other in pairs if other != "-"]
            found[prefix + name] = "<br>".join(lines)
    return found


def _sections(found: list[Field]) -> tuple[dict[str, str], dict[str, list[Field]]]:
    """The comments of sections, and the fields of each; those without a section are in ""."""
    notes: dict[str, str] = {}
    sections: dict[str, list[Field]] = {"": []}
    for field in found:
        section, dot, _ = field.name.partition(".")
        holds = any(other.name.startswith(f"{field.name}.") for other in found)
        if field.default or not holds:
            field = field._replace(default=field.default or "{}")
            sections.setdefault(section if dot else "", []).append(field)
        else:
            notes[field.name] = field.comment
            sections.setdefault(section, [])
    return notes, sections


def _table(held: list[Field], names: dict[str, str]) -> str:
    header = ["field", "default", "meaning", *(["elsewhere"] if names else [])]
    rows = [header, ["---"] * len(header)]
    for field in held:
        elsewhere = [names.get(field.name, "")] if names else []
        rows.append([f"`{field.name}`", _code(field.default), _text(field.comment), *elsewhere])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _code(text: str) -> str:
    """Python in a cell of a table, which a `|` would end."""
    return f"`{text}`".replace("|", "\\|")


def _text(comment: str) -> str:
    """A comment in a cell: but for names in backquotes it is no Markdown."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", comment)
