"""Graph definitions as static arguments of compiled functions."""

from typing import Any

from flax import nnx


class _ById:
    """A graph definition that cannot be hashed, because its module holds something that cannot."""

    def __init__(self, graph: Any):
        self.graph = graph


def hashable(graph: Any) -> Any:
    """The graph definition, or what stands for it where it cannot be hashed."""
    try:
        hash(graph)
    except TypeError:
        return _ById(graph)
    return graph


def merged(graph: Any, state: Any) -> Any:
    """The module of a graph definition from `hashable` and of its state."""
    return nnx.merge(graph.graph if isinstance(graph, _ById) else graph, state)
