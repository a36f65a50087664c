"""The pages `api/MODULE.md` of the site: what a module's docstrings say.

Docstrings are read from the source. Nothing of the library is imported, so the site is built
without JAX. In the nav `api/` stands for all of them.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from public_modules import public_modules

_MODULES = public_modules(Path(__file__).parents[2] / "maxpo")


def on_config(config: Any) -> Any:
    """Puts the pages into the nav, by packages."""
    for part in config.nav:
        for title, inner in part.items():
            if inner == "api/":
                part[title] = [
                    {_full(package): [f"api/{module}.md" for module in modules]}
                    for package, modules in _MODULES.items()
                ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each module."""
    for modules in _MODULES.values():
        for module in modules:
            content = f"# `{_full(module)}`\n\n::: {_full(module)}\n"
            files.append(File.generated(config, f"api/{module}.md", content=content))
    return files


def _full(module: str) -> str:
    return f"maxpo.{module}".rstrip(".")
