"""The pages `config/NAME.md` of the site: every field of `configs/NAME.py`.

Made at each build from the comments in the configs, so that there is nothing to keep up to date.
"""

import re
from pathlib import Path
from typing import Any

import config_fields
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `([\w.]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each config."""
    for path in sorted((ROOT / "configs").glob("[a-z]*.py")):
        files.append(File.generated(config, f"config/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """The reference of one config, in Markdown."""
    names = _names_elsewhere() if path.stem == "lm" else {}
    parts = [f"# `configs/{path.name}`", f"```text\n{config_fields.docstring(path)}\n```"]
    sections: dict[str, list[config_fields.Field]] = {"": []}
    notes = {}
    for field in config_fields.fields(path):
        if field.default:
            sections.setdefault(_section(field.name), []).append(field)
        else:
            notes[field.name] = field.comment
            sections.setdefault(field.name.partition(".")[0], [])
    for name, fields in sections.items():
        if name:
            parts += [f"## `{name}`", notes.get(name, "")]
        parts.append(_table(fields, names))
    variants = config_fields.fields_of_variants(path)
    if variants:
        parts += ["## Fields of some variants alone", _table(variants, names)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(name: str) -> str:
    return name.partition(".")[0] if "." in name else ""


def _table(fields: list[config_fields.Field], names: dict[str, list[str]]) -> str:
    if not fields:
        return "Empty by default."
    header = ["field", "default", "meaning", *(("TRL", "verl", "Tunix") if names else ())]
    rows = [header, ["---"] * len(header)]
    for field in fields:
        others = names.get(field.name, ["", "", ""]) if names else []
        rows.append([f"`{field.name}`", _code(field.default), _cell(field.comment), *others])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _code(text: str) -> str:
    """Python in a cell of a table; a `|` would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    """A comment in a cell: its brackets, braces and names are no Markdown."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", text)


def _names_elsewhere() -> dict[str, list[str]]:
    """Each field of docs/names.md and its names in TRL, verl and Tunix."""
    found = {}
    for part in (ROOT / "docs/names.md").read_text(encoding="utf-8").split("\n## "):
        prefix = "rl." if "| `rl.` |" in part else ""
        for name, *others in _ROW.findall(part):
            found[prefix + name] = [other.strip() for other in others]
    return found
