"""Benchmarks: each times one part of the library beside a reference, in the same process."""

__all__: list[str] = []
