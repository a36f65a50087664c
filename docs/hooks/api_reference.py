"""The pages `api/MODULE.md` of the site: what a module's docstrings say.

The nav of mkdocs.yml says which modules have one. Docstrings are read from the source; nothing of
the library is imported, so the site is built without JAX.
"""

from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each `api/MODULE.md` of the nav."""
    for page in _pages(config.nav):
        if page.startswith("api/"):
            module = f"maxpo.{page.removeprefix('api/').removesuffix('.md')}"
            content = f"# `{module}`\n\n::: {module}\n"
            files.append(File.generated(config, page, content=content))
    return files


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for inner in nav.values():
            yield from _pages(inner)
    else:
        for inner in nav:
            yield from _pages(inner)
