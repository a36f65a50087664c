"""Warnings of Tunix's models, samplers and trainer."""

import pytest

IGNORED = [
    pytest.mark.filterwarnings(f"ignore:{message}:DeprecationWarning")
    for message in (
        "jax.experimental.shard_map is",
        "'sharding' is deprecated, use",
        "`with mesh.` context manager",
        "jax.interpreters.pxla.thread_res",
        "'.value' access is now deprecated",
        "optax.global_norm is deprecated",
    )
]
"""The `pytestmark` of a module that uses Tunix."""
