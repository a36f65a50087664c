"""Does less gradient variance make learning faster? Predicted from moments, and measured."""

__all__: list[str] = []
