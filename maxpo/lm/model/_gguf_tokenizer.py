"""The tokenizer in a GGUF file's metadata, as the files that a Hugging Face folder has for it."""

from typing import TYPE_CHECKING, Any, NamedTuple

from maxpo._extras import missing_extra
from maxpo.lm.model._gguf_file import GGUFFile

if TYPE_CHECKING:
    import tokenizers

__all__ = ["GGUFTokenizer", "read_tokenizer"]

# Types of tokens. Normal ones come about by merges; unused ones only fill up the vocabulary.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_ENDS = ("eos", "eot", "eom")  # Of a text, of a turn, of a message that calls a tool.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")


class GGUFTokenizer(NamedTuple):
    """A tokenizer, by what the files of a folder say of it.

    Attributes:
      json: Of `tokenizer.json`.
      config: Fields of `tokenizer_config.json`.
      generation: Fields of `generation_config.json`.
      ids: Those of special tokens in `config.json`.
      size: Ids are below it.
    """

    json: str
    config: dict[str, Any]
    generation: dict[str, Any]
    ids: dict[str, int]
    size: int


def read_tokenizer(file: GGUFFile) -> GGUFTokenizer:
    """The tokenizer of a file, which is byte-level BPE.

    Raises:
      MissingExtraError: If the package `tokenizers` is missing.
      ValueError: If the tokenizer is of another kind or splits text in a way that is not known
        here, or its metadata are missing, ill-typed or do not fit together.
    """
    try:
        from tokenizers import AddedToken, processors
    except ImportError as error:
        raise missing_extra("import_gguf", "tokenizers", "gguf", error) from error
    model = file.required("tokenizer.ggml.model", str)
    if model != "gpt2":
        file.refuse("tokenizer.ggml.model", "'gpt2', which is byte-level BPE", model)
    vocabulary, types = _vocabulary(file)
    tokenizer = _byte_level_bpe(file, vocabulary)

    tokens = {number: token for token, number in vocabulary.items()}
    ids = _special_ids(file, tokens)
    special = {role: tokens[ids[role]] for role in _ROLES if role in ids}
    control = {token for token, kind in types.items() if kind == _CONTROL} | {*special.values()}
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=token in control)
            for token, kind in types.items()
            if token in control or kind == _USER_DEFINED
        ]
    )
    adds = _added_around_a_text(file)
    before, after = ([special[role]] if adds[role] else [] for role in ("bos", "eos"))
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, vocabulary[token]) for token in {*before, *after}],
        )
    template = file.optional("tokenizer.chat_template", str)
    stored = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}
    ends = list(dict.fromkeys(ids[end] for end in _ENDS if end in ids))
    return GGUFTokenizer(
        json=tokenizer.to_str(),
        config={
            # Not the model's own class, which would split text in a way of its own.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{f"add_{role}_token": added for role, added in adds.items()},
            **{f"{role}_token": token for role, token in special.items()},
            **({} if template is None else {"chat_template": template}),
        },
        generation={**stored, "eos_token_id": ends},
        ids=stored,
        size=1 + max(tokens),
    )


def _vocabulary(file: GGUFFile) -> tuple[dict[str, int], dict[str, int]]:
    """The id and the type of each token that is in use."""
    tokens = file.required("tokenizer.ggml.tokens", list)
    types = file.optional("tokenizer.ggml.token_type", list) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        file.refuse(
            "tokenizer.ggml.token_type", f"one for each of {len(tokens)} tokens", len(types)
        )
    used = [number for number, kind in enumerate(types) if kind != _UNUSED]
    vocabulary = {tokens[number]: number for number in used}
    if len(vocabulary) != len(used):
        file.refuse("tokenizer.ggml.tokens", "each token once", "some of them twice")
    return vocabulary, {tokens[number]: types[number] for number in used}


def _special_ids(file: GGUFFile, tokens: dict[int, str]) -> dict[str, int]:
    """Ids by what they stand for; the end of a text is always among them."""
    file.required("tokenizer.ggml.eos_token_id", int)
    ids = {}
    for role, name in {**_ROLES, **{end: end for end in _ENDS}}.items():
        number = file.optional(f"tokenizer.ggml.{name}_token_id", int)
        if number is None:
            continue
        if number not in tokens:
            file.refuse(f"tokenizer.ggml.{name}_token_id", "the id of a token", number)
        ids[role] = number
    return ids


def _added_around_a_text(file: GGUFFile) -> dict[str, bool]:
    """Whether a text begins with the token for that, and ends with the one for that."""
    # Where the file is silent.
    adds = {"bos": file.optional("tokenizer.ggml.pre", str) in _LLAMA3, "eos": False}
    for role in adds:
        added = file.optional(f"tokenizer.ggml.add_{role}_token", bool)
        if added is not None:
            adds[role] = added
        if adds[role]:
            file.required(f"tokenizer.ggml.{role}_token_id", int)
    return adds


def _byte_level_bpe(file: GGUFFile, vocabulary: dict[str, int]) -> "tokenizers.Tokenizer":
    """The tokenizer without its special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pre = file.required("tokenizer.ggml.pre", str)
    pre_tokenizer = _pre_tokenizer(file, pre)
    merges = file.required("tokenizer.ggml.merges", list)
    for merge in merges:
        if merge.count(" ") != 1:
            file.refuse("tokenizer.ggml.merges", "two tokens each", merge)
    try:
        # Llama 3 takes a word that is a token as it is, however it would come about.
        bpe = models.BPE(
            vocab=vocabulary,
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=pre in _LLAMA3,
        )
    except Exception as error:  # The package raises plain Exception.
        raise ValueError(f"{file.path}: tokenizer.ggml.merges do not fit: {error}") from None
    tokenizer = Tokenizer(bpe)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(file: GGUFFile, pre: str) -> "tokenizers.pre_tokenizers.PreTokenizer":
    """What splits a text into the words inside which merges happen."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if pre not in ("qwen2", *_LLAMA3):
        known = ", ".join(("gpt-2", "smollm", "qwen2", *_LLAMA3))
        file.refuse("tokenizer.ggml.pre", f"one of {known}", pre)
    word = "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # What English contracts.
            r"[^\r\n\p{L}\p{N}]?\p{L}+",  # Letters, and what stands before them, as a space.
            r"\p{N}" if pre == "qwen2" else r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # Signs, with the ends of lines after them.
            r"\s*[\r\n]+",
            r"\s+(?!\S)",  # White space but for its last character, if something follows.
            r"\s+",
        )
    )
    return Sequence(
        [
            Split(Regex(word), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
