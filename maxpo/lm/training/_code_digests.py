"""A few characters that tell one function, or one optimizer, from another.

Names do not: a reward that was mended has the name that it had before, and a run that goes on, or
is read, under it would say what the old one found.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import textwrap
import tokenize
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxpo import parallel
from maxpo.lm.training._digests import shown

__all__ = ["code_digest", "value_digest"]

# Known by their names: another version of them is no other choice of the user's.
_LIBRARIES = ("builtins", "flax", "functools", "jax", "maxpo", "numpy", "optax")


def code_digest(function: Callable[..., Any]) -> str:
    """A hash of what a function says; "" for one without Python code, or of a library.

    Comments, docstrings and the layout do not count, nor does what it calls or closes over.
    """
    found = _python(function)
    if found is None or _is_library(found):
        return ""
    return shown(hashlib.sha256(_text(found).encode()))


def value_digest(value: Any) -> str:
    """A hash of a value that is made of functions, such as an optimizer, and of what they hold.

    Numbers, texts, arrays, containers and functions count; of any other object its type.
    """
    content = hashlib.sha256()
    _add(content, value, set())
    return shown(content)


def _add(content: Any, value: Any, above: set[int]) -> None:
    if id(value) in above:  # A function that closes over itself.
        content.update(b"itself\n")
        return
    above = above | {id(value)}
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        content.update(f"{type(value).__name__} {value!r}\n".encode())
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(parallel.fetch(value))
        content.update(f"array {array.dtype} {array.shape}\n".encode())
        if array.dtype.hasobject:  # Its bytes are addresses.
            _add(content, array.tolist(), above)
        else:
            content.update(array.tobytes())
    elif isinstance(value, Mapping):
        content.update(f"mapping {len(value)}\n".encode())
        for key, item in value.items():
            _add(content, key, above)
            _add(content, item, above)
    elif isinstance(value, tuple | list):
        content.update(f"{type(value).__qualname__} {len(value)}\n".encode())
        for item in value:
            _add(content, item, above)
    elif isinstance(value, functools.partial):
        content.update(b"partial\n")
        for item in (value.func, value.args, value.keywords):
            _add(content, item, above)
    elif (function := _python(value)) is not None:
        content.update(f"function {function.__module__}:{function.__qualname__}\n".encode())
        if not _is_library(function):
            content.update(_text(function).encode())
        for item in (function.__defaults__, function.__kwdefaults__, _closure(function)):
            _add(content, item, above)
    else:
        content.update(f"{type(value).__module__}:{type(value).__qualname__}\n".encode())


def _python(function: Any) -> types.FunctionType | None:
    """The function with the code, within what wraps or binds it."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    if isinstance(function, types.MethodType):
        function = function.__func__
    if callable(function) and not isinstance(function, types.FunctionType | type):
        function = inspect.getattr_static(type(function), "__call__", None)
    return function if isinstance(function, types.FunctionType) else None


def _is_library(function: types.FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] in _LIBRARIES


def _closure(function: types.FunctionType) -> dict[str, Any]:
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # Not assigned yet.
            held[name] = cell.cell_contents
    return held


def _text(function: types.FunctionType) -> str:
    """The function's source in one layout, which no version of Python changes; else its code."""
    if function.__name__ == "<lambda>":  # The lines of its source hold other things, too.
        return _code(function.__code__)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # Typed into a shell.
        return _code(function.__code__)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _code(code: types.CodeType) -> str:
    constants = [
        _code(value)
        if isinstance(value, types.CodeType)
        else sorted(map(repr, value))  # Sets have another order in each process.
        if isinstance(value, frozenset)
        else repr(value)
        for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
