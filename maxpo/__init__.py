"""maxpo: policy gradients for inference-time objectives, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxpo import estimators, lm, losses
    from maxpo.order_statistics import max_at_k, pass_at_k, rank_warp

__all__ = ["__version__", "estimators", "lm", "losses", "max_at_k", "pass_at_k", "rank_warp"]


__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what is asked for: processes that need no JAX must start, and fork, fast."""
    if name in ("estimators", "lm", "losses"):
        return importlib.import_module(f"maxpo.{name}")
    if name in __all__:
        return getattr(importlib.import_module("maxpo.order_statistics"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
