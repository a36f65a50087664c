"""Which modules have a page in the reference: all that are public, but for the studies."""

import ast
from pathlib import Path

__all__ = ["public_modules"]


def public_modules(package: Path) -> dict[str, list[str]]:
    """Packages and their modules, in alphabetical order, by names within the package.

    A module is public if its name and those of its packages have no underscore in front, and its
    `__all__` names something.

    Args:
      package: The folder of the whole package.

    Returns:
      Name of a package ("" for the whole) to names of modules, such as "lm" to ["lm", "lm.model"];
      a package that exports something is its own first module.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        *folders, name = path.relative_to(package).with_suffix("").parts
        is_package = name == "__init__"
        private = any(part.startswith("_") for part in [*folders, *([] if is_package else [name])])
        if private or "studies" in folders or not _exports(path) or (is_package and not folders):
            continue
        parent = ".".join(folders)
        module = parent if is_package else ".".join([*folders, name])
        found.setdefault(parent, []).append(module)
    return dict(sorted(found.items()))


def _exports(path: Path) -> bool:
    """Whether its `__all__` has a name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return bool(node.value.elts)
    return False
