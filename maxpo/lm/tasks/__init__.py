"""Problems in text, tokenizers, and the verification of completions."""

__all__: list[str] = []
