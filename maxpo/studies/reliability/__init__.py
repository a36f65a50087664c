"""Programs that are killed, asked to end, out of disk or damaged, and what becomes of them."""

__all__: list[str] = []
