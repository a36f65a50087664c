"""results.md in pieces: one file for those who read it elsewhere, a page a study in the site."""

import posixpath
import re

__all__ = ["page_of_each_heading", "pages", "redirected"]

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


def pages(results: str) -> dict[str, str]:
    """The pages of results.md: itself, with its introduction alone, and one for each section.

    Returns:
      Path of a page to its Markdown, whose links are still those of results.md.
    """
    introduction, sections = _cut(results)
    contents = "\n".join(f"* [{title}](results.md#{_slug(title)})" for title in sections)
    found = {"results.md": f"{introduction.rstrip()}\n\n{contents}\n"}
    for title, text in sections.items():
        # A heading of level 3 and below is one level up.
        body = re.sub(r"^#(##+ )", r"\1", text, flags=re.M)
        found[_page(title)] = f"# {title}\n{body}"
    return found


def page_of_each_heading(results: str) -> dict[str, str]:
    """The anchor of each heading of results.md below its first, and the page that now has it."""
    _, sections = _cut(results)
    return {
        _slug(heading): _page(title)
        for title, text in sections.items()
        for heading in [title, *_HEADING.findall(text)]
    }


def redirected(markdown: str, page: str, headings: dict[str, str]) -> str:
    """A page whose links into results.md lead to its pieces.

    Args:
      markdown: Of the page.
      page: Its path. The links of a piece of results.md are those of results.md.
      headings: From `page_of_each_heading`.
    """
    origin = "results.md" if page in headings.values() else page

    def new(found: re.Match[str]) -> str:
        file, mark, anchor = found[1].partition("#")
        if "://" in file:
            return found[0]
        folder = posixpath.dirname(origin)
        target = posixpath.normpath(posixpath.join(folder, file)) if file else origin
        if target == "results.md":
            target = headings.get(anchor, target)
        return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{mark}{anchor})"

    return _LINK.sub(new, markdown)


def _cut(results: str) -> tuple[str, dict[str, str]]:
    """What comes before the first section, and the text of each section by its title."""
    introduction, *parts = re.split(r"^## ", results, flags=re.M)
    sections = (part.partition("\n") for part in parts)
    return introduction, {title: text for title, _, text in sections}


def _page(title: str) -> str:
    return f"results/{_slug(title)}.md"


def _slug(heading: str) -> str:
    """As GitHub has it, and the site."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
