"""Text to token ids and back: characters, or any `tokenizer.json` of Hugging Face."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from maxpo._extras import missing_extra
from maxpo.lm.tasks.text import shown

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "END_TOKENS",
    "PAD_TOKENS",
    "CharTokenizer",
    "Tokenizer",
    "encode_prompt",
    "end_ids",
    "load_tokenizer",
    "pad",
    "read_json_object",
    "special_tokens",
]

END_TOKENS = ("</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>")
_CHARACTERS = b'{"type": "characters"'
_SPECIAL = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
_COMPANIONS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja"),
)
_CONFIG = "tokenizer_config.json"
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")


class Tokenizer(Protocol):
    """What training and generation need of a tokenizer.

    It may also have `end_ids`, all tokens that end a completion, and `start_ids`, the tokens that
    stand before a text; see the functions `end_ids` and `encode_prompt`.

    Attributes:
      vocab_size: Ids are below it.
      pad_id: Fills up rows.
      eos_id: Ends an answer that is learned from.
    """

    vocab_size: int
    pad_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text; no special token is added."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first end, without the padding around them.

        Every other special token leaves a mark in the text: what stands on its two sides is not
        one word, and "4<|eom_id|>2" is not 42.
        """

    def to_json(self) -> str:
        """All that tells it from another tokenizer."""


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """All tokens that end a completion, `eos_id` first."""
    others = getattr(tokenizer, "end_ids", ())
    return (tokenizer.eos_id, *(i for i in others if i != tokenizer.eos_id))


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that a model reads, after the start token of models that were trained with one.

    A text that begins with the start token, such as a chat, gets no second one.
    """
    start = list(getattr(tokenizer, "start_ids", ()))
    ids = tokenizer.encode(text)
    return ids if ids[: len(start)] == start else [*start, *ids]


class CharTokenizer:
    """One token for each character; reversible.

    Ids: 0 is padding, 1 the end, then the alphabet in its order.

    Args:
      alphabet: The characters, each once.

    Raises:
      ValueError: If the alphabet is empty or has a character twice.

    >>> tokenizer = CharTokenizer.from_texts(["1+2", "3"])
    >>> tokenizer.encode("2+3")
    [4, 2, 5]
    >>> tokenizer.decode([0, 4, 2, 5, 1, 3])
    '2+3'
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, alphabet: str):
        repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
        if not alphabet or repeated:
            found = f"{''.join(repeated)!r} more than once" if repeated else "no character"
            raise ValueError(f"alphabet: expected each of its characters once, got {found}")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + 2
        self._ids = {character: i for i, character in enumerate(alphabet, start=2)}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "CharTokenizer":
        """A tokenizer of all characters that occur in the texts, in sorted order."""
        return cls("".join(sorted(set().union(*texts))))

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
          ValueError: If a character is not in the alphabet.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"character {error.args[0]!r} is not in the alphabet {self.alphabet!r};"
                f" it occurs in {shown(text)}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first `eos_id`, without the padding around them.

        Padding between characters becomes the replacement character, and so do ids from
        `vocab_size` on, which a model has whose vocabulary was filled up to a round number and
        which an untrained one samples.

        Raises:
          ValueError: If an id is negative.
        """
        ids = _content(ids, self)
        if min(ids, default=0) < 0:
            raise ValueError(f"ids: expected none below 0, got {min(ids)}")
        return "".join(
            self.alphabet[i - 2] if 2 <= i < self.vocab_size else "\N{REPLACEMENT CHARACTER}"
            for i in ids
        )

    def to_json(self) -> str:
        """All that `from_json` needs, to be stored beside a model's parameters."""
        return json.dumps({"type": "characters", "alphabet": self.alphabet})

    @staticmethod
    def is_in(file: Path) -> bool:
        """Whether a file holds what `to_json` gave."""
        with file.open("rb") as stream:
            return stream.read(len(_CHARACTERS)) == _CHARACTERS

    @classmethod
    def from_json(cls, text: str) -> "CharTokenizer":
        """The tokenizer that `to_json` described.

        Raises:
          ValueError: If the text is something else.
        """
        try:
            content = json.loads(text)
            if content["type"] != "characters":
                raise KeyError("type")
            return cls(content["alphabet"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                "expected a CharTokenizer's JSON, with type 'characters' and an alphabet,"
                f" got {shown(text)}"
            ) from error


class _HuggingFaceTokenizer:
    """Adapts `tokenizers.Tokenizer` to `Tokenizer`."""

    def __init__(
        self,
        tokenizer: "tokenizers.Tokenizer",
        ends: tuple[int, ...],
        pad_id: int,
        start_ids: tuple[int, ...],
        files: dict[str, str],
    ):
        self._tokenizer = tokenizer
        # What a checkpoint has beside tokenizer.json, to go where the tokenizer goes.
        self.files = files
        # Ids may have gaps, so their number is not enough.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.eos_id = ends[0]
        self.end_ids = ends
        self.pad_id = pad_id
        self.start_ids = start_ids

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        # Special tokens are written out: without them what they part would grow together.
        return self._tokenizer.decode(_content(ids, self), skip_special_tokens=False)

    def to_json(self) -> str:
        ids = {"end_ids": self.end_ids, "pad_id": self.pad_id, "start_ids": self.start_ids}
        return json.dumps({"tokenizer": self._tokenizer.to_str(), **ids})


def load_tokenizer(
    path: str | PathLike[str], *, eos_token: str | None = None, pad_token: str | None = None
) -> Tokenizer:
    """Loads a Hugging Face `tokenizer.json`. Needs `pip install 'maxpo[lm]'`.

    The tokens for end and padding are, in this order: those given here; those that a
    `tokenizer_config.json` beside the file names; the one of the usual names that the vocabulary
    has (`END_TOKENS`, `PAD_TOKENS`). Without a padding token the end token pads too. All tokens
    that a `generation_config.json` beside the file names as `eos_token_id` end a completion, too.
    Prompts begin with a start token where the tokenizer's own encoding of a text does.

    A folder that holds a `CharTokenizer` in its `tokenizer.json` gives that.

    Args:
      path: The file, or the folder that holds it.
      eos_token: What ends a completion, as text.
      pad_token: What fills up rows, as text.

    Raises:
      MissingExtraError: If the package `tokenizers` is missing.
      ValueError: If the file is missing or is no tokenizer, if a named token is not in its
        vocabulary, or if which token ends a completion is not clear.
    """
    file = Path(path)
    if file.is_dir():
        file /= "tokenizer.json"
    if file.is_file() and CharTokenizer.is_in(file):
        return CharTokenizer.from_json(file.read_text(encoding="utf-8"))
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("load_tokenizer", "tokenizers", "lm", error) from error
    if not file.is_file():
        raise ValueError(f"no tokenizer at {file}: expected a Hugging Face tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The package raises plain Exception.
        raise ValueError(f"{file} is no Hugging Face tokenizer.json: {error}") from error
    # Stored settings that would pad or cut single texts.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = read_json_object(file.with_name(_CONFIG))
    configured = special_tokens(config)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)

    eos_token = eos_token or configured.get("eos_token")
    if eos_token is None:
        found = [token for token in END_TOKENS if token in vocabulary]
        if len(found) != 1:
            raise ValueError(
                f"which token of {file} ends a completion is not clear: expected one of"
                f" {list(END_TOKENS)}, found {found}; give eos_token"
            )
        eos_token = found[0]
    pad_token = pad_token or configured.get("pad_token")
    if pad_token is None:
        pad_token = next((token for token in PAD_TOKENS if token in vocabulary), eos_token)
    for name, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token not in vocabulary:
            raise ValueError(f"{name} {token!r} is not in the vocabulary of {file}")
    eos_id = vocabulary[eos_token]
    others = _generation_ends(file.with_name("generation_config.json"), set(vocabulary.values()))
    return _HuggingFaceTokenizer(
        tokenizer,
        (eos_id, *(i for i in others if i != eos_id)),
        vocabulary[pad_token],
        _start_ids(tokenizer, configured.get("bos_token"), config.get("add_bos_token")),
        {
            "tokenizer.json": file.read_text(encoding="utf-8"),
            **{
                name: path.read_text(encoding="utf-8")
                for name in _COMPANIONS
                if (path := file.with_name(name)).is_file()
            },
        },
    )


def pad(
    sequences: Sequence[Sequence[int]],
    *,
    length: int,
    pad_id: int,
    side: Literal["left", "right"] = "left",
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one length.

    Args:
      sequences: B sequences of ids.
      length: T, at least that of the longest.
      pad_id: What fills up.
      side: Where to fill up.

    Returns:
      Tokens `[B, T]`, int32, and mask `[B, T]`, True on the tokens of the sequences.

    Raises:
      ValueError: If a sequence is longer than `length`, or the side is unknown.

    >>> tokens, mask = pad([[5, 6], [7]], length=3, pad_id=0)
    >>> tokens.tolist(), mask.tolist()
    ([[0, 5, 6], [0, 0, 7]], [[False, True, True], [False, False, True]])
    """
    if side not in ("left", "right"):
        raise ValueError(f"side: expected 'left' or 'right', got {side!r}")
    tokens = np.full((len(sequences), length), pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise ValueError(
                f"sequence {row} has {len(sequence)} tokens, more than length={length}"
            )
        start = length - len(sequence) if side == "left" else 0
        tokens[row, start : start + len(sequence)] = sequence
        mask[row, start : start + len(sequence)] = True
    return tokens, mask


def _content(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """The ids before the first end token, without the padding around them."""
    content = list(itertools.dropwhile(lambda i: i == tokenizer.pad_id, map(int, ids)))
    ends = end_ids(tokenizer)
    content = list(itertools.takewhile(lambda i: i not in ends, content))
    while content and content[-1] == tokenizer.pad_id:
        content.pop()
    return content


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a `tokenizer_config.json` names: as text, or as an object."""
    tokens = {}
    for name in _SPECIAL:
        token = config.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None:
            tokens[name] = token
    return tokens


def _generation_ends(file: Path, known: set[int]) -> list[int]:
    """The tokens that end a completion by a `generation_config.json`."""
    found = read_json_object(file).get("eos_token_id")
    if found is None:
        return []
    ends = found if isinstance(found, list) else [found]
    for token in ends:
        if isinstance(token, bool) or not isinstance(token, int) or token not in known:
            raise ValueError(
                f"{file}: eos_token_id: expected ids of the vocabulary, got {json.dumps(found)}"
            )
    return ends


def _start_ids(
    tokenizer: "tokenizers.Tokenizer", bos: str | None, adds: bool | None
) -> tuple[int, ...]:
    """What the tokenizer's own encoding puts before a text.

    Args:
      tokenizer: The tokenizer.
      bos: The start token of its config.
      adds: The config's `add_bos_token`. It says more than the file of the tokenizer, which
        transformers changes by it, too.
    """
    if adds is False:
        return ()
    if adds and bos is not None:
        start = tokenizer.token_to_id(bos)
        return () if start is None else (start,)
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    text = tokenizer.encode("a", add_special_tokens=False).ids
    places = range(len(whole) - len(text) + 1)
    first = next((i for i in places if whole[i : i + len(text)] == text), 0)
    return tuple(whole[:first])


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
      ValueError: If the file holds anything else.
    """
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # Not JSON, or not UTF-8.
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object, got {shown(config)}")
    return config
