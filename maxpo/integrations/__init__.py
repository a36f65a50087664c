"""Other trainers with this library's advantages. Each module imports its own trainer, on demand."""

__all__: list[str] = []
