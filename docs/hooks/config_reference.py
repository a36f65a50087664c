"""The pages `config/NAME.md` of the site: every field of `configs/NAME.py`.

Made at each build from the comments in the configs, so that there is nothing to keep up to date. In
the nav `config/` stands for all of them.
"""

import re
from pathlib import Path
from typing import Any

import config_fields
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `([\w.]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", re.M)
_CONFIGS = sorted((ROOT / "configs").glob("[a-z]*.py"))


def on_config(config: Any) -> Any:
    """Puts the pages into the nav."""
    for part in config.nav:
        for title, inner in part.items():
            if inner == "config/":
                part[title] = [f"config/{path.stem}.md" for path in _CONFIGS]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each config."""
    for path in _CONFIGS:
        files.append(File.generated(config, f"config/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """The reference of one config, in Markdown."""
    names = _names_elsewhere() if path.stem == "lm" else {}
    parts = [f"# `configs/{path.name}`", f"```text\n{config_fields.docstring(path)}\n```"]
    sections: dict[str, list[config_fields.Field]] = {"": []}
    notes = {}
    found = config_fields.fields(path)
    for field in found:
        if "." in field.name and not any(f.name.startswith(f"{field.name}.") for f in found):
            field = field._replace(default=field.default or "{}")
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


def _table(fields: list[config_fields.Field], names: dict[str, str]) -> str:
    if not fields:
        return "Empty by default."
    header = ["field", "default", "meaning", *(["elsewhere"] if names else [])]
    rows = [header, ["---"] * len(header)]
    for field in fields:
        elsewhere = [names.get(field.name, "")] if names else []
        rows.append([f"`{field.name}`", _code(field.default), _cell(field.comment), *elsewhere])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _code(text: str) -> str:
    """Python in a cell of a table; a `|` would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    """A comment in a cell: its brackets, braces and names are no Markdown."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", text)


def _names_elsewhere() -> dict[str, str]:
    """The names in TRL, verl and Tunix of each field of docs/names.md, one a line."""
    found = {}
    for part in (ROOT / "docs/names.md").read_text(encoding="utf-8").split("\n## "):
        prefix = "rl." if "| `rl.` |" in part else ""
        for name, *others in _ROW.findall(part):
            pairs = zip(("TRL", "verl", "Tunix"), map(str.strip, others), strict=True)
            lines = [f"{trainer}: {other}" for trainer, other in pairs if other != "-"]
            found[prefix + name] = "<br>".join(lines)
    return found
