"""Tasks whose problems and answers are texts: what a task of a language model is made of."""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "AVerifier",
    "Problem",
    "TextTask",
    "Verifier",
    "digest",
    "is_text_only",
    "load_verifier",
    "preloads",
    "shown",
    "text_only",
]


class Problem(NamedTuple):
    """One problem.

    Attributes:
      prompt: What the model reads.
      answer: Text of a right answer, for supervised training; "" where none is known.
      entry: Whatever else the verifier has to know; picklable.
      messages: The conversation that the model continues, each message with a "role" and a
        "content", see `maxpo.lm.tasks.messages`; then `prompt` is the user's last message. Empty
        where the prompt is all there is.
    """

    prompt: str
    answer: str = ""
    entry: Mapping[str, Any] = {}
    messages: tuple[Mapping[str, str], ...] = ()


Verifier = Callable[[Problem, str], float]
"""Reward of a completion. Picklable, and a function of its arguments alone."""

AVerifier = TypeVar("AVerifier", bound=Verifier)


def text_only(verifier: AVerifier) -> AVerifier:
    """Marks a function to which a completion is text and nothing else.

    It executes no part of a completion, by `eval` or otherwise, and keeps nothing between calls. So
    no sample can reach the next, and `maxpo.lm.tasks.verification.VerifierPool` has many of them
    scored by one process, which is much faster than one for each.
    """
    # The function itself, for a wrapper takes over the attributes of what it wraps.
    verifier.text_only = verifier  # type: ignore[attr-defined]
    return verifier


def preloads(load: Callable[[], object]) -> Callable[[Verifier], Verifier]:
    """Marks a function that imports when it is called: each worker calls `load` once, before that.

    Every sample is scored in a process of its own, in which an import would be done again.
    """

    def mark(verifier: Verifier) -> Verifier:
        verifier.preload = load  # type: ignore[attr-defined]
        return verifier

    return mark


def is_text_only(verifier: Verifier) -> bool:
    """Whether it is marked by `text_only`."""
    return getattr(verifier, "text_only", None) is verifier


class TextTask(NamedTuple):
    """Problems to train on, others to measure on, and what gives reward."""

    name: str
    train: Sequence[Problem]
    held_out: Sequence[Problem]
    verifier: Verifier


def digest(problems: Sequence[Problem]) -> str:
    """A short name of some problems, the same in every process and another for other problems.

    >>> digest([Problem("1+1=", "2", {"level": 1})])
    'sha256:8b7fc9b1cb04ee6e'
    """
    found = hashlib.sha256()
    # No recursion: entries may be nested as deeply as their file wants.
    # Problems without messages have the names that they had before there were messages.
    left: list[Any] = [[problem if problem.messages else problem[:3] for problem in problems]]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            # By their texts, because keys of several types have no order.
            items = sorted(value.items(), key=lambda item: repr(item[0]))
            found.update(f"mapping {len(items)}\n".encode())
            left += [part for item in items for part in item]
        elif isinstance(value, (list, tuple)):
            found.update(f"sequence {len(value)}\n".encode())
            left += value
        elif isinstance(value, (set, frozenset)):
            left.append(sorted(map(repr, value)))
        elif hasattr(value, "tolist"):  # NumPy shortens the text of a long array.
            left.append(value.tolist())
        elif hasattr(value, "__dict__"):
            left.append([type(value).__qualname__, vars(value)])
        else:
            text = repr(value)
            found.update(f"{len(text)} {text}\n".encode())
    return f"sha256:{found.hexdigest()[:16]}"


def shown(value: object) -> str:
    """A value as an error shows it: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def load_verifier(name: str, **built_in: Verifier) -> Verifier:
    """A verifier by its name.

    Args:
      name: Name of one that is built in, or "module:function".
      **built_in: Those that need no module, by name.

    Raises:
      ValueError: If it is neither, cannot be imported or is no function.
    """
    if name in built_in:
        return built_in[name]
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):
        known = "".join(f"{known!r} or " for known in built_in)
        raise ValueError(f"verifier: expected {known}'module:function', got {name!r}")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # The module is the user's; anything may go wrong in it.
        raise ValueError(
            f"verifier {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"verifier {name!r}: expected a function, got {function!r}")
    return function
