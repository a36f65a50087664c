"""The pages `config/NAME.md` of the site: every field of `configs/NAME.py`.

Made at each build from the comments in the configs, so that there is nothing to keep up to date. In
the nav `config/` stands for all of them.
"""

from pathlib import Path
from typing import Any

from config_page import config_page, names_elsewhere
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
_CONFIGS = sorted((_ROOT / "configs").glob("[a-z]*.py"))


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
        names = names_elsewhere(_ROOT / "docs/names.md") if path.stem == "lm" else {}
        content = config_page(path, names)
        files.append(File.generated(config, f"config/{path.stem}.md", content=content))
    return files
