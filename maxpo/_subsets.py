"""Odds of drawing k of several samples without replacement, for any real k >= 0.

Every gap weight of `maxpo._gap_sums` is built from one quantity,

    P(below, total, k) = C(below, k) / C(total, k) = prod_{j = below+1 .. total} max(j - k, 0) / j,

the probability that a random k-subset of `total` samples lies entirely within `below` given ones.
The product form needs no integer k (the binomials are then ratios of gamma functions) and is 0
where fewer than k samples are `below`.

With k and the group size known while tracing, the product is taken on the host in float64. Else it
is taken in the graph as exp(S[below] - S[total]), where S[x] is the sum over j <= x of
log(j / (j - k)). One table S serves groups of every size, so a mask costs a lookup, not a scan. S
reaches thousands while only differences below about 50 matter, hence it is kept as an unevaluated
sum of two floats: differences of the high parts are then exact, and the odds are as good as the
dtype allows however far into the tail they lie. Subtracting float32 log-gammas instead would lose
four digits at N = 4096 and everything far beyond.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maxpo._groups import Scalar

Array = np.ndarray | jax.Array


def all_below(below: Array, total: Scalar, k: Scalar, size: int, dtype: jnp.dtype) -> Array:
    """P(below, total, k): all of k draws fall within `below` of the `total` samples.

    Args:
      below: Whole numbers between 0 and `total`, of any dtype and of a shape that broadcasts with
        `total`. Where it is larger than `total` (after the last valid sample) the result has no
        meaning.
      total: The number of samples to draw from, at most `size`.
      k: The number of draws, 0 <= k <= total: one, or one for each group in an array `[..., 1]`.
      size: Length of the tables, an upper bound of `total` known while tracing.
      dtype: Dtype of the result, where it is computed in the graph.

    Returns:
      Probabilities in the broadcast shape: a float64 NumPy array where everything is known while
      tracing, else a JAX array.
    """
    if isinstance(k, (int, float)) and isinstance(total, int):
        return _lookup(_host_products(total, k), below, dtype)
    return _graph_odds(below, total, k, _log_table(k, size, dtype), outside=False)


def any_above(below: Array, total: Scalar, k: Scalar, size: int, dtype: jnp.dtype) -> Array:
    """1 - P(below, total, k): at least one of k draws falls outside `below`; see `all_below`.

    Its own function because one minus a float32 probability would lose the small results.
    """
    if isinstance(k, (int, float)) and isinstance(total, int):
        return _lookup(1.0 - _host_products(total, k), below, dtype)
    return _graph_odds(below, total, k, _log_table(k, size, dtype), outside=True)


def _host_products(total: int, k: float) -> np.ndarray:
    """P(x, total, k) for x = 0..total, in float64."""
    j = np.arange(total, 0, -1, dtype=np.float64)
    return np.append(1.0, np.cumprod(np.maximum(j - k, 0.0) / j))[::-1]


def _lookup(table: np.ndarray, index: Array, dtype: jnp.dtype) -> Array:
    if isinstance(index, np.ndarray):
        return table[index.astype(int)]
    return jnp.asarray(table, dtype)[index.astype(jnp.int32)]


@partial(jax.jit, static_argnames="outside")
def _graph_odds(
    below: Array, total: Scalar, k: Scalar, table: tuple[jax.Array, jax.Array], *, outside: bool
) -> jax.Array:
    """P, or 1 - P if `outside`, from the table S as high and low part."""
    below = jnp.asarray(below).astype(jnp.int32)
    total = jnp.clip(jnp.asarray(total).astype(jnp.int32), 0)
    high, low = (_entries(part, below) - _entries(part, total) for part in table)
    # The high parts differ by an exact amount, hence two exponentials and not one of their sum.
    odds = -jnp.expm1(high + low) if outside else jnp.exp(high) * jnp.exp(low)
    odds = jnp.where((below + 1).astype(odds.dtype) <= k, int(outside), odds)
    return jnp.where(below == total, int(not outside), odds)


def _entries(table: jax.Array, index: jax.Array) -> jax.Array:
    """S at `index`, from one table `[size + 1]` for all groups, or `[..., size + 1]` for each."""
    if table.ndim == 1:
        return table[index]
    index = index.reshape((1,) * (table.ndim - index.ndim) + index.shape)
    return jnp.take_along_axis(table, index, axis=-1, mode="clip")


def _log_table(k: Scalar, size: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """S[x] for x = 0..size as an unevaluated sum of two floats. Factors j <= k are left out.

    Of the shape `[size + 1]`, or `[..., size + 1]` for a k of shape `[..., 1]`.
    """
    if not isinstance(k, jax.Array):
        j = np.arange(1, size + 1, dtype=np.float64)
        possible = j > k
        terms = np.where(possible, np.log1p(k / np.where(possible, j - k, 1.0)), 0.0)
        exact = np.append(0.0, np.cumsum(terms))
        host_high = exact.astype(dtype)
        return jnp.asarray(host_high), jnp.asarray(exact - host_high, dtype)

    return _device_log_table(k, size, dtype)


@partial(jax.jit, static_argnames=("size", "dtype"))
def _device_log_table(k: jax.Array, size: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    j = jnp.arange(1, size + 1, dtype=dtype).reshape((1,) * (k.ndim - 1) + (size,))
    impossible = j <= k
    # log(j / (j - k)) in the form that is well-conditioned for k near 0 and k near j alike.
    terms = jnp.where(impossible, 0, jnp.log1p(k / jnp.where(impossible, 1, j - k)))
    terms = jnp.concatenate([jnp.zeros((*terms.shape[:-1], 1), dtype), terms], axis=-1)
    return lax.associative_scan(_add_two_floats, (terms, jnp.zeros_like(terms)), axis=-1)


def _add_two_floats(
    a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Knuth's error-free addition of the high parts; its error joins the low parts."""
    high = a[0] + b[0]
    b_seen = high - a[0]
    error = (a[0] - (high - b_seen)) + (b[0] - b_seen)
    return high, a[1] + b[1] + error
