"""A decoder-only transformer: checkpoints in and out, sampling, and log-probabilities."""

__all__: list[str] = []
