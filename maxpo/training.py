"""The update step: rewards -> advantages -> gradient -> optax."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maxpo import estimators

K: TypeAlias = float | Callable[[jax.Array], jax.Array]
Advantages = Callable[[jax.Array, jax.Array], jax.Array]


BINARY = ("max_rl", "pass_at_k_training")
"""Estimators whose formula takes rewards for 0 or 1."""


class TrainState(NamedTuple):
    """What training carries from one update to the next.

    Attributes:
      step: Number of updates that are done. Keys are folded from it, so that a resumed run draws
        what an uninterrupted one draws.
      params: Trainable parameters of the policy, in float32 at least.
      opt_state: State of the optimizer.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState


def init_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update.

    Parameters of less than float32 become float32, and so do the optimizer's moments: bfloat16 has
    8 significant bits, in which an update of less than a 512th of a weight leaves it as it was.
    What a policy computes in is its own affair.
    """

    def widened(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_float else x

    params = jax.tree.map(widened, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def apply_gradients(
    state: TrainState, gradients: nnx.State, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimizer step."""
    # Optax mixes dtypes by itself, which JAX's strict mode would refuse.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state)


def k_schedule(initial: float, final: float, updates: int) -> K:
    """A k that goes from `initial` to `final` in a straight line over `updates`, then constant.

    A k that does not change stays a number, whose gap weights are then computed while tracing.

    Raises:
      ValueError: If a k is below 1, or it changes over less than one update.
    """
    if not (initial >= 1 and final >= 1):
        raise ValueError(f"expected k >= 1, got k from {initial} to {final}.")
    if initial == final:
        return initial
    if updates < 1:
        raise ValueError(f"expected k to change over at least 1 update, got {updates}.")
    return optax.linear_schedule(initial, final, updates)


def needs_only_k(name: str) -> bool:
    """Whether the named estimator needs nothing but rewards and, perhaps, a k.

    Raises:
      ValueError: If there is no such estimator.

    >>> needs_only_k("maxpo"), needs_only_k("blended")
    (True, False)
    """
    parameters = inspect.signature(estimators.get(name)).parameters.values()
    return {p.name for p in parameters if p.default is p.empty} <= {"rewards", "k"}


def check_graded(names: Iterable[str], field: str, setting: str) -> None:
    """Raises ValueError if rewards are graded and one of the estimators needs 0/1 rewards.

    Args:
      names: Of the estimators.
      field: What the config calls them.
      setting: The field of the config that makes rewards graded.
    """
    for name in names:
        if name in BINARY:
            raise ValueError(
                f"{field}: expected estimators of graded rewards, as {setting} says, got {name}, "
                "which needs rewards of 0 or 1."
            )


def bind_estimator(name: str, k: K, **options: Any) -> Advantages:
    """The named estimator as a function of rewards and the update's number.

    Args:
      name: One of `estimators.names()`.
      k: A number, or an optax schedule of the update's number; it may change from update to update
        without compiling anew. Estimators of the mean have no k and ignore it.
      **options: Further keyword arguments of the estimator, such as GRPO's `epsilon`.

    Returns:
      A function of rewards `[..., N]` and the number of updates done, to advantages `[..., N]`.

    Raises:
      ValueError: If there is no such estimator.
      TypeError: If it takes no such option, or needs another one.

    >>> bind_estimator("maxpo", 2)(jnp.array([1., 2., 4.]), 0)
    Array([-2., -2.,  4.], dtype=float32)
    """
    function = estimators.get(name)
    parameters = inspect.signature(function).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise TypeError(f"{name}: expected options among {[*parameters][1:]}, got {unknown}.")
    needed = {p.name for p in parameters.values() if p.default is p.empty} - {"rewards", "k"}
    if not needed <= {*options}:
        raise TypeError(f"{name}: expected the options {sorted(needed)}, got {sorted(options)}.")
    if "k" not in parameters:
        return lambda rewards, step: function(rewards, **options)
    return lambda rewards, step: function(rewards, k(step) if callable(k) else k, **options)
