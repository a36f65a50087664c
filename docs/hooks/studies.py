"""A page for each study of results.md, in the nav after `results.md`."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from results_pages import page_of_each_heading, pages, redirected

_RESULTS = (Path(__file__).parents[1] / "results.md").read_text(encoding="utf-8")
_PAGES = pages(_RESULTS)
_HEADINGS = page_of_each_heading(_RESULTS)


def on_config(config: Any) -> Any:
    """Puts the pages into the nav."""
    for part in config.nav:
        for title, inner in part.items():
            if inner == "results.md":
                part[title] = list(_PAGES)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Puts the pages in the place of results.md."""
    whole = files.get_file_from_path("results.md")
    assert whole is not None
    files.remove(whole)
    for page, content in _PAGES.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lets links into results.md lead to its pages."""
    return redirected(markdown, page.file.src_uri, _HEADINGS)
