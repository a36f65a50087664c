"""A page for each study of results.md, which is one long file for those who read it elsewhere.

Its sections become pages `results/NAME.md`, and links to their headings lead there.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_DOCS = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Cuts results.md into its introduction and its sections."""
    introduction, sections = _cut()
    results = files.get_file_from_path("results.md")
    assert results is not None
    files.remove(results)
    list_ = "\n".join(f"* [{title}](results/{_slug(title)}.md)" for title in sections)
    content = f"{introduction.rstrip()}\n\n{list_}\n"
    files.append(File.generated(config, "results.md", content=content))
    for title, text in sections.items():
        page = f"results/{_slug(title)}.md"
        files.append(File.generated(config, page, content=_moved(title, text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Redirects links to headings of results.md."""
    here = page.file.src_uri
    pages = _page_of_each_heading()

    def redirected(found: re.Match[str]) -> str:
        file, _, anchor = found[1].partition("#")
        if "://" in file:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), file)) if file else here
        if target != "results.md" or anchor not in pages:
            return found[0]
        new = posixpath.relpath(pages[anchor], posixpath.dirname(here) or ".")
        return f"]({new}#{anchor})"

    return _LINK.sub(redirected, markdown)


def _cut() -> tuple[str, dict[str, str]]:
    """What comes before the first section, and the text of each section by its title."""
    introduction, *parts = re.split(r"^## ", (_DOCS / "results.md").read_text("utf-8"), flags=re.M)
    return introduction, {
        title: text for title, _, text in (part.partition("\n") for part in parts)
    }


def _moved(title: str, text: str) -> str:
    """A section as a page one folder below, its headings one level up."""
    text = re.sub(r"^##(#+ )", r"#\1", text, flags=re.M)

    def moved(found: re.Match[str]) -> str:
        target = found[1]
        if "://" in target:
            return found[0]
        return f"](../{'results.md' if target.startswith('#') else ''}{target})"

    return f"# {title}\n{_LINK.sub(moved, text)}"


def _page_of_each_heading() -> dict[str, str]:
    _, sections = _cut()
    return {
        _slug(heading): f"results/{_slug(title)}.md"
        for title, text in sections.items()
        for heading in [title, *_HEADING.findall(text)]
    }


def _slug(heading: str) -> str:
    """As GitHub has it, and the site."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
