"""The fields of a config, with their defaults and comments, read from its source.

Nothing is imported: a field is what `get_config` assigns before its first `if`, or what a dict that
it assigns holds, and its comment is that of its line, or else the ones right above it.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Field", "docstring", "fields", "fields_of_variants"]


class Field(NamedTuple):
    """One field of a config.

    Attributes:
      name: With dots, such as "rl.steps".
      default: Its expression; "" of a section, which holds the fields below it.
      comment: What the source says of it, on one line; "" if nothing.
    """

    name: str
    default: str
    comment: str


def docstring(path: Path) -> str:
    """The docstring of a config."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def fields(path: Path) -> list[Field]:
    """The fields of a config's default variant, in the order of the source."""
    return list({field.name: field for field in _Source(path).of_default()}.values())


def fields_of_variants(path: Path) -> list[Field]:
    """The fields that only other variants have."""
    source = _Source(path)
    default = {field.name for field in source.of_default() if field.default}
    found: dict[str, Field] = {}
    for field in source.of_variants():
        if field.default and field.name not in default:
            found.setdefault(field.name, field)
    return list(found.values())


class _Source:
    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        self._text = text
        self._comments, self._alone = _comments(text)
        module = ast.parse(text)
        self._dicts = {
            target.id: node.value
            for node in module.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        (function,) = (
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef) and node.name == "get_config"
        )
        self._body = function.body

    def of_default(self) -> Iterator[Field]:
        for node in self._body:
            yield from self._of_statement(node)

    def of_variants(self) -> Iterator[Field]:
        for branch in self._body:
            if isinstance(branch, ast.If):
                for node in ast.walk(branch):
                    yield from self._of_statement(node)

    def _of_statement(self, node: ast.AST) -> Iterator[Field]:
        """Of `config.a.b = value` and of `config.a.update(NAME)`."""
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield from self._of_value(_path(node.targets[0]), node.value, node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if ast.unparse(call.func).endswith(".update") and call.args:
                name = _path(call.func.value)
                yield from self._of_value(name, call.args[0], node)

    def _of_value(self, name: str, value: ast.expr, at: ast.AST) -> Iterator[Field]:
        if isinstance(value, ast.Name) and value.id in self._dicts:
            value = self._dicts[value.id]
        inner = _dict(value)
        if inner is None:
            yield Field(name, self._expression(value), self._comment(at, value))
            return
        if name:
            yield Field(name, "", self._comment(at, value))
        for key, held in zip(inner.keys, inner.values, strict=True):
            assert isinstance(key, ast.Constant)
            for field in self._of_value(f"{name}.{key.value}".lstrip("."), held, key):
                # A comment on a line that has the whole dict is that of the section.
                yield field._replace(comment="") if key.lineno == at.lineno else field

    def _expression(self, value: ast.expr) -> str:
        """As it is written, or on one line without its comments."""
        written = ast.get_source_segment(self._text, value) or ""
        return ast.unparse(value) if "\n" in written else written

    def _comment(self, start: ast.AST, end: ast.expr) -> str:
        """That of a line of the field, and those right above it that stand alone."""
        first, last = start.lineno, end.lineno
        own = [self._comments[line] for line in range(first, last + 1) if line in self._comments]
        above = []
        while (first := first - 1) in self._alone:
            above.insert(0, self._comments[first])
        return " ".join(above + own)


def _path(node: ast.expr) -> str:
    """`rl.steps` of `config.rl.steps`."""
    return ast.unparse(node).partition(".")[2]


def _dict(value: ast.expr) -> ast.Dict | None:
    """That of `{...}` in an update or of `ConfigDict({...})`; `ConfigDict()` has an empty one."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "ConfigDict":
        if not value.args:
            return ast.Dict(keys=[], values=[])
        if isinstance(value.args[0], ast.Dict):
            return value.args[0]
    return None


def _comments(text: str) -> tuple[dict[int, str], set[int]]:
    """The comment of each line that has one, and the lines that have nothing else."""
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return comments, alone
