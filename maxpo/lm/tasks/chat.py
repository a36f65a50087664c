"""Chats as the texts that a model was trained on, by the template that comes with it.

Templates are programs in Jinja, which run in its sandbox: they are part of a download. See
"Chat templates" (https://huggingface.co/docs/transformers/chat_templating).
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxpo._extras import missing_extra
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import read_json_object, special_tokens

if TYPE_CHECKING:
    import jinja2

__all__ = ["TODAY", "ChatTemplate", "has_chat_template", "load_chat_template"]

TODAY = datetime.datetime(2024, 7, 26)
"""What a template that asks for the date is told.

Fixed, because a run that is resumed tomorrow has to see the same prompts. It is what the templates
of Llama 3.2 say where they are given no date.
"""

Message = Mapping[str, Any]

_CONFIG, _FILE = "tokenizer_config.json", "chat_template.jinja"


class ChatTemplate:
    """A chat template and the special tokens that it may write.

    Args:
      source: The template's text.
      tokens: Special tokens by name, such as "bos_token".

    Raises:
      MissingExtraError: If the package `jinja2` is missing.
      ValueError: If the text is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None):
        self._tokens = dict(tokens or {})
        self._template = _compile(source)

    def __call__(self, messages: Sequence[Message], **variables: Any) -> str:
        """The text of a chat, up to where the model's next turn begins.

        Args:
          messages: Each with its "role" and its "content".
          **variables: What else the template reads, such as `enable_thinking=False` of Qwen3.

        Raises:
          ValueError: If the template refuses the messages, or needs what is not given.
        """
        import jinja2

        given = {**self._tokens, **variables, "add_generation_prompt": True}
        try:
            return self._template.render(messages=list(messages), **given)
        except jinja2.TemplateError as error:
            raise ValueError(
                "chat template: expected messages and variables that it can render, got "
                f"{json.dumps(list(messages), default=str)[:200]}: {error}"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"chat template: it fails with {error!r}") from error

    def problem(
        self,
        problem: Problem,
        *,
        system: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> Problem:
        """A problem whose prompt is the chat in which the user asks it.

        Args:
          problem: With a prompt, which becomes the user's message, or with messages of its own.
          system: A system message that comes first; "": none, so that some templates write their
            default one.
          variables: As of `__call__`.

        Raises:
          ValueError: As `__call__`; or for a system message of ours where the problem has one.
        """
        messages = list(problem.messages) or [{"role": "user", "content": problem.prompt}]
        if system:
            if messages[0]["role"] == "system":
                raise ValueError(
                    "task.system: expected none for problems that begin with a system message of "
                    f"their own, got {system!r}"
                )
            messages.insert(0, {"role": "system", "content": system})
        return problem._replace(prompt=self(messages, **(variables or {})))


def has_chat_template(folder: str | PathLike[str]) -> bool:
    """Whether a checkpoint's folder holds a chat template."""
    return _source(Path(folder)) is not None


def load_chat_template(folder: str | PathLike[str]) -> ChatTemplate:
    """The chat template of a checkpoint, from `chat_template.jinja` or `tokenizer_config.json`.

    Needs `pip install 'maxpo[lm]'`, of which only jinja2.

    Raises:
      MissingExtraError: If the package `jinja2` is missing.
      ValueError: If the folder holds no template, or none that can be read.
    """
    path = Path(folder)
    source = _source(path)
    if source is None:
        raise ValueError(
            f"chat template: expected {_FILE} or a chat_template in {_CONFIG} in {path}, got "
            "neither; set task.chat=False and write the format into task.template"
        )
    return ChatTemplate(source, _special_tokens(path))


def _source(folder: Path) -> str | None:
    """The text of a checkpoint's template. The newer of the two places goes first."""
    file = folder / _FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = read_json_object(folder / _CONFIG).get("chat_template")
    if isinstance(found, list):  # Several, by name.
        named = {each["name"]: each["template"] for each in found}
        if "default" not in named:
            raise ValueError(
                f"{folder / _CONFIG}: chat_template: expected one of the name 'default', got "
                f"{', '.join(named)}"
            )
        found = named["default"]
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"{folder / _CONFIG}: chat_template: expected a text, got {json.dumps(found)[:80]}"
        )
    return found


def _special_tokens(folder: Path) -> dict[str, str]:
    """The texts of all special tokens that have a name."""
    # Older checkpoints have a file for them, which says what the config says.
    known = {
        **read_json_object(folder / "special_tokens_map.json"),
        **read_json_object(folder / _CONFIG),
    }
    return special_tokens(known)


def _compile(source: str) -> "jinja2.Template":
    """The template, in the environment that templates of chats are written for."""
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise missing_extra("a chat template", "jinja2", "lm", error) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse(jinja2.TemplateError)
    environment.globals["strftime_now"] = TODAY.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"chat template: expected a Jinja template, got {error}") from error


def _generation_tag() -> type:
    """The block `{% generation %}`, by which templates mark what is learned from; it stays text."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (Jinja reads it from the class)

        def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return [nodes.Scope(body, lineno=line)]

    return Generation


def _refuse(kind: type[Exception]) -> Callable[[str], None]:
    def raise_exception(message: str) -> None:
        raise kind(message)

    return raise_exception


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
