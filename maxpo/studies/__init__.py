"""What the experiment binaries run: studies as pure functions of a config, and their figures."""

__all__: list[str] = []
