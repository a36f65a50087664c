"""The update step: rewards -> advantages -> gradient -> optax."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maxpo import estimators

K: TypeAlias = float | Callable[[jax.Array], jax.Array]
Advantages = Callable[[jax.Array, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """What training carries from one update to the next.

    Attributes:
      step: Number of updates that are done. Keys are folded from it, so that a resumed run draws
        what an uninterrupted one draws.
      params: Trainable parameters of the policy.
      opt_state: State of the optimizer.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState


def init_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def apply_gradients(
    state: TrainState, gradients: nnx.State, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimizer step."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


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
      TypeError: If it takes no such option.

    >>> bind_estimator("maxpo", 2)(jnp.array([1., 2., 4.]), 0)
    Array([-2., -2.,  4.], dtype=float32)
    """
    function = estimators.get(name)
    parameters = inspect.signature(function).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise TypeError(f"{name}: expected options among {[*parameters][1:]}, got {unknown}.")
    if "k" not in parameters:
        return lambda rewards, step: function(rewards, **options)
    return lambda rewards, step: function(rewards, k(step) if callable(k) else k, **options)
