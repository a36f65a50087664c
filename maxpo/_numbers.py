"""Real numbers of any kind as floats, by value.

Without x64 JAX cuts 64-bit integers to 32 bits before they can become floats: 3,000,000,000 turns
negative. What is not on a device yet is therefore converted on the host.
"""

import decimal
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_PYTHON_NUMBERS = (numbers.Real, decimal.Decimal, np.bool_)


def as_floats(values: ArrayLike, expected: str) -> jax.Array:
    """`values` in float32, or in float64 if they are at least that wide and JAX is in x64 mode.

    Args:
      values: Booleans, integers or floats of any width, on the host or a device; beyond the range
        of the result they become infinite.
      expected: Begins the message of an error, such as "maxpo: expected rewards".

    Raises:
      TypeError: If they are not real numbers.
      ValueError: If they are nested sequences of unequal lengths.
    """
    if isinstance(values, (list, tuple)) and any(
        isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)
    ):
        return jnp.stack(same_width([as_floats(value, expected) for value in values]))
    if not isinstance(values, jax.Array):
        if hasattr(values, "__jax_array__"):
            return as_floats(values.__jax_array__(), expected)
        host = host_floats(values, expected)
        with np.errstate(over="ignore"):
            return jnp.asarray(host.astype(jax.dtypes.canonicalize_dtype(host.dtype)))
    if not _is_real(values.dtype):
        raise TypeError(f"{expected} of a real dtype, got {values.dtype}")
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def same_width(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Casts results of `as_floats` to the widest of them, which JAX's strict mode does not do."""
    wide = any(array.dtype == jnp.float64 for array in arrays)
    return [array.astype(jnp.float64 if wide else jnp.float32) for array in arrays]


def host_floats(values: Any, expected: str) -> np.ndarray:
    """`as_floats` that touches no device: float64 if the values are that wide, else float32."""
    try:
        array = np.asarray(values)
    except OverflowError:  # Floats beside an integer that has no float64.
        array = np.asarray(values, object)
    except ValueError as error:
        raise ValueError(f"{expected} in a regular array: {error}") from None
    if array.dtype == object:
        array = _from_python(array, expected)
    if not _is_real(array.dtype):
        raise TypeError(f"{expected} of a real dtype, got {array.dtype}")
    wide = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize >= 8
    with np.errstate(over="ignore"):
        return array.astype(np.float64 if wide else np.float32, copy=False)


def is_scalar(value: Any) -> bool:
    """Whether it is a number and no sequence or array of them."""
    return not isinstance(value, (list, tuple)) and np.ndim(value) == 0


def is_traced(values: Any) -> bool:
    """Whether any of them is not known while tracing."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def _is_real(dtype: Any) -> bool:
    # NumPy counts spans of time among the integers.
    return getattr(dtype, "kind", None) != "m" and any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)
    )


def _from_python(array: np.ndarray, expected: str) -> np.ndarray:
    """Python's own numbers, which NumPy keeps as objects where 64 bits do not hold them."""
    for value in array.flat:
        if not isinstance(value, _PYTHON_NUMBERS):
            raise TypeError(f"{expected} to be real numbers, got {value!r}")
    return np.vectorize(_nearest_float, otypes=[np.float64])(array)


def _nearest_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
