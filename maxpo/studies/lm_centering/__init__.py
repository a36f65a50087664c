"""Whether centered advantages pay in language-model training: puzzle, training, comparison."""

__all__: list[str] = []
