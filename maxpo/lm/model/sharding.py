"""Where each array of a model lies on a mesh, which decay and which are matrices: one table."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from maxpo import parallel
from maxpo.parallel import DATA, MODEL

__all__ = [
    "ADAPTED",
    "PROMPT_CACHE",
    "RULES",
    "SAMPLE_CACHE",
    "Matrix",
    "Rule",
    "Rules",
    "decays",
    "layout",
    "map_matrices",
]

FULLY = "data, where fully sharded"


class Matrix(NamedTuple):
    """Which axes of an array are those of a matrix; the others count its matrices.

    Attributes:
      inputs: Those of what it is multiplied with.
      outputs: Those of the product.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Rule(NamedTuple):
    """What is done with the arrays of one name.

    Attributes:
      axes: The axis of the mesh over which each axis of the array is cut; None: over none. `FULLY`
        is `data` where parameters are fully sharded.
      decays: Whether weight decay makes it smaller: matrices do, scales and biases do not.
      matrix: What an optimizer of matrices makes orthogonal. None: nothing, as of embeddings, whose
        rows are vectors of their own.
    """

    axes: tuple[str | None, ...]
    decays: bool
    matrix: Matrix | None = None


Rules = Mapping[str, Rule]

_STACKED = Matrix((1,), (2,))  # A matrix for each layer.

# The transformer's arrays, whose layers are stacked. Heads and the width of the MLP are cut over
# `model`, so that a layer communicates twice: after `attention_out` and after `down`.
RULES: dict[str, Rule] = {
    "embedding": Rule((MODEL, FULLY), decays=True),  # vocabulary, hidden
    "output": Rule((MODEL, FULLY), decays=True),  # vocabulary, hidden
    "final_norm": Rule((None,), decays=False),  # hidden
    "attention_norm": Rule((None, None), decays=False),  # layer, hidden
    # layer, hidden, kv head, query, head_dim. Queries, keys and values are matrices of their own.
    "qkv": Rule((None, FULLY, MODEL, None, None), decays=True, matrix=Matrix((1,), (2, 4))),
    "qkv_bias": Rule((None, MODEL, None, None), decays=False),
    "query_norm": Rule((None, None), decays=False),  # layer, head_dim
    "key_norm": Rule((None, None), decays=False),  # layer, head_dim
    # layer, head * head_dim, hidden
    "attention_out": Rule((None, MODEL, FULLY), decays=True, matrix=_STACKED),
    "mlp_norm": Rule((None, None), decays=False),  # layer, hidden
    "gate": Rule((None, FULLY, MODEL), decays=True, matrix=_STACKED),  # layer, hidden, mlp
    "up": Rule((None, FULLY, MODEL), decays=True, matrix=_STACKED),
    "down": Rule((None, MODEL, FULLY), decays=True, matrix=_STACKED),  # layer, mlp, hidden
}

ADAPTED = ("qkv", "attention_out", "gate", "up", "down")
"""Matrices that may have adapters, see `maxpo.lm.model.lora`."""

# A `[layer, in, rank]` lies as its matrix's input does, B `[layer, rank, out ...]` as the output.
for _name in ADAPTED:
    (_layer, _input, *_outputs), _, _matrix = RULES[_name]
    RULES[f"{_name}_a"] = Rule((_layer, _input, None), decays=True, matrix=_STACKED)
    RULES[f"{_name}_b"] = Rule((_layer, None, *_outputs), decays=True, matrix=_matrix)

# Keys and values of prompts `[P, kv heads, ...]` and of samples `[P, N, kv heads, ...]`.
PROMPT_CACHE = (DATA, MODEL)
SAMPLE_CACHE = (DATA, None, MODEL)


def layout(tree: Any, rules: Rules | None, *, fully_sharded: bool) -> Any:
    """Where each leaf of parameters, or of a training state with them, belongs.

    The optimizer's moments have the names of their parameters, and lie as they do; those of another
    rank, such as factored ones, are whole on every device, and so are vectors without a rule.

    Args:
      tree: Arrays, or their shapes.
      rules: By name, the last of a leaf's path that is among them. None: the model has none.
      fully_sharded: Also cut matrices over `data`: each device holds its part of parameters,
        gradients and moments, and gathers a layer's matrices when it computes the layer.

    Returns:
      A tree of partition specs; None without a mesh.

    Raises:
      ValueError: If a matrix has no rule, or an axis does not divide by the devices that it is to
        be cut over, naming it.
    """
    mesh = parallel.current_mesh()
    if mesh is None:
        return None

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        rule = _rule(path, leaf, rules or {})
        if rule is None or np.ndim(leaf) != len(rule.axes):
            return PartitionSpec()
        axes: list[str | None] = []
        for axis, over in enumerate(rule.axes):
            if over == FULLY:
                over = DATA if fully_sharded else None
            if over is not None and np.shape(leaf)[axis] % mesh.shape[over]:
                raise ValueError(
                    f"mesh: expected axis {axis} of {_full_name(path)} to divide by {over} = "
                    f"{mesh.shape[over]}, got the shape {list(np.shape(leaf))}"
                )
            axes.append(over)
        return PartitionSpec(*axes) if any(axes) else PartitionSpec()

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def decays(params: nnx.State, rules: Rules | None) -> nnx.State:
    """True at the parameters that decay.

    Args:
      params: Parameters of a model.
      rules: By name, as for `layout`. None: everything of two axes or more decays.

    Raises:
      ValueError: If there are rules, but none for a matrix.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> bool:
        if rules is None:
            return np.ndim(leaf) >= 2
        rule = _rule(path, leaf, rules)
        return rule is not None and rule.decays

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def map_matrices(
    function: Callable[[Matrix], Any], params: Any, rules: Rules, *, otherwise: Any
) -> Any:
    """A function of the `matrix` of each parameter, and a value for those that are none.

    Args:
      function: Of the axes of a matrix.
      params: Parameters of a model, or a part of them.
      rules: By name, as for `layout`.
      otherwise: The value.

    Raises:
      ValueError: If there is no rule for an array of two axes or more.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        rule = _rule(path, leaf, rules)
        return otherwise if rule is None or rule.matrix is None else function(rule.matrix)

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _rule(path: tuple[Any, ...], leaf: Any, rules: Rules) -> Rule | None:
    names = _names(path)
    rule = next((rules[name] for name in reversed(names) if name in rules), None)
    if rule is None and np.ndim(leaf) >= 2:
        raise ValueError(
            f"rules: expected one for every matrix, got none for {_full_name(path)} of the "
            f"shape {list(np.shape(leaf))}; say how it is cut and whether it decays, as in "
            "maxpo.lm.model.sharding.RULES"
        )
    return rule


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]


def _full_name(path: tuple[Any, ...]) -> str:
    """As in the model, where no one writes the `value` of a variable."""
    names = [name for name in _names(path) if name]
    return ".".join(names[:-1] if names[-1:] == ["value"] else names)
