"""Conversations as prompts: lists of messages, each with a role and a content."""

from collections.abc import Mapping, Sequence
from typing import Any

from maxpo.lm.tasks.text import shown

__all__ = ["ROLES", "make_messages"]

ROLES = ("system", "developer", "user", "assistant", "tool")


def make_messages(value: Any, template: str = "{prompt}") -> tuple[dict[str, str], ...]:
    """The messages of a conversation that waits for the assistant's answer.

    A content is a text, or a list of parts `{"type": "text", "text": ...}` whose texts are put
    together. Fields that are None do not count: a table has the same ones in every row.

    Args:
      value: A list of messages, such as `[{"role": "user", "content": "6 * 7?"}]`.
      template: Template of the last message of the user, with `{prompt}` in it.

    Raises:
      ValueError: If it is something else, has a role that is not one of `ROLES`, no message of the
        user or an empty one at last, or ends with the assistant's.

    >>> parts = [{"type": "text", "text": "6 * "}, {"type": "text", "text": "7?"}]
    >>> make_messages([{"role": "user", "content": parts}], "Q: {prompt}")
    ({'role': 'user', 'content': 'Q: 6 * 7?'},)
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise ValueError(f"expected a list of messages, got {shown(value)}")
    messages = tuple(_message(number, message) for number, message in enumerate(value))
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "expected messages that wait for an answer, got the assistant's as the last one"
        )
    asked = [message for message in messages if message["role"] == "user"]
    if not asked or not asked[-1]["content"]:
        what = "an empty one" if asked else "none"
        raise ValueError(f"expected a message of the user with a text, got {what} at last")
    asked[-1]["content"] = template.replace("{prompt}", asked[-1]["content"])
    return messages


def _message(number: int, value: Any) -> dict[str, str]:
    fields = _fields(f"message {number}", value, ("role", "content"))
    role, content = fields["role"], fields["content"]
    if role not in ROLES:
        raise ValueError(
            f"message {number}: role: expected one of {', '.join(ROLES)}, got {shown(role)}"
        )
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        parts = enumerate(content)
        content = "".join(_text(f"message {number}: part {i}", part) for i, part in parts)
    if not isinstance(content, str):
        raise ValueError(
            f"message {number}: content: expected a text or a list of parts, got {shown(content)}"
        )
    return {"role": role, "content": content}


def _text(name: str, part: Any) -> str:
    fields = _fields(name, part, ("type", "text"))
    if fields["type"] != "text" or not isinstance(fields["text"], str):
        raise ValueError(f"{name}: expected a part of type 'text' with a text, got {shown(part)}")
    return fields["text"]


def _fields(name: str, value: Any, expected: Sequence[str]) -> Mapping[str, Any]:
    """A mapping with exactly these fields."""
    found = value if isinstance(value, Mapping) else {}
    found = {field: content for field, content in found.items() if content is not None}
    if set(found) != set(expected):
        raise ValueError(
            f"{name}: expected the fields {' and '.join(expected)}, got {shown(value)}"
        )
    return found
