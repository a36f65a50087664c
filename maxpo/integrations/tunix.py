"""The estimators in Tunix's registry, for Gemma, Llama and Qwen on TPU pods.

    import maxpo.integrations.tunix
    maxpo.integrations.tunix.register(k=4)
    config = tunix.GRPOConfig(advantage_estimator="maxpo", num_generations=16, beta=0.0)

Scale. With `loss_agg_mode="seq-mean-token-sum"` Tunix's loss is the mean over samples of the sum
over tokens, for which the advantages are made; completions without a token are no samples there.
Its default "sequence-mean-token-mean" divides the loss of each sample by its number of tokens.
"""

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from maxpo import estimators, methods
from maxpo._extras import missing_extra

__all__ = ["names", "register"]

# Tunix's own, by the same formulas.
_BUILT_IN = ("grpo", "rloo")


def register(*names: str, k: float | None = None) -> tuple[str, ...]:
    """Adds estimators to Tunix's advantage registry, for `GRPOConfig(advantage_estimator=...)`.

    Call it before the learner is made, in every process. A name may be a method with settings of
    its own (see `maxpo.methods`), as in `register("maxpo:k=4", "blended:k=4,weight=0.5")`, and is
    then the name in Tunix, too.

    Tunix has `grpo` and `rloo` of its own, which stay what they are.

    Args:
      *names: Estimators of `estimators.names()`, or methods, of which `NAME:K` is short for
        `NAME:k=K`. None means all that need no other argument than k.
      k: Number of samples whose best counts, for those names that bring none;
        1 <= k <= num_generations - 1.

    Returns:
      The names that Tunix now knows.

    Raises:
      MissingExtraError: If Tunix is not installed.
      TypeError: If k is not a real number, or an estimator needs it and has none.
      ValueError: If there is no such estimator, k is below 1, or Tunix has the name already.
    """
    if not names:
        if k is None:
            raise TypeError('register: expected k, as in register(k=4) or register("maxpo:4")')
        names = tuple(name for name in _alone_with_k() if name not in _BUILT_IN)
    new = {name: _bind(name, k) for name in names}
    registry = _registry()
    taken = sorted(set(_known(registry)) & set(new))
    if taken:
        raise ValueError(
            f"register: Tunix has {', '.join(taken)} already, its own or from an earlier call of "
            'register. For a second k give names with it, as in register("maxpo:k=8").'
        )
    for name, function in new.items():
        registry.register_advantage_estimator(name)(function)
    return tuple(new)


def names() -> tuple[str, ...]:
    """The advantage estimators that Tunix knows, its own among them.

    Raises:
      MissingExtraError: If Tunix is not installed.
    """
    return _known(_registry())


def _known(registry: Any) -> tuple[str, ...]:
    return tuple(registry.default_registry.list_functions("advantage_estimator"))


def _alone_with_k() -> tuple[str, ...]:
    return tuple(filter(methods.needs_only_k, estimators.names()))


def _bind(name: str, k: float | None) -> Callable[..., np.ndarray]:
    """The estimator, or the method, of that name as Tunix calls it."""
    base, colon, own_k = name.partition(":")
    function = estimators.get(base)  # It names the known ones.
    if "=" in own_k:
        return _as_tunix_calls_it(name, _of_method(name))
    if base not in _alone_with_k():
        raise ValueError(
            f"register: {base} needs more than k; expected one of {', '.join(_alone_with_k())}"
        )
    options: dict[str, Any] = {}
    if "k" in inspect.signature(function).parameters:
        if colon:
            try:
                k = float(own_k)
            except ValueError:
                raise ValueError(f"register: expected NAME:K, a number K, got {name!r}") from None
        if k is None:
            raise TypeError(f"register: expected k for {name!r}, as in register({name!r}, k=4)")
        options["k"] = _check_k(k)
    elif colon:
        raise ValueError(f"register: {base} has no k, got {name!r}")
    return _as_tunix_calls_it(name, lambda groups: function(groups, **options))


def _of_method(spec: str) -> Callable[[np.ndarray], Any]:
    """The advantages of a method whose settings do not change, which Tunix has no way to tell."""
    method = methods.parse_method(spec)
    if method.learning_rate is not None:
        raise ValueError(f"register: expected no learning_rate, Tunix has its own; got {spec!r}")
    if method.k and method.k[0] != method.k[1]:
        raise ValueError(f"register: expected one k, Tunix knows no steps; got {spec!r}")
    bound: Any = method.bind(1)
    return lambda groups: bound(groups, 0)


def _as_tunix_calls_it(
    name: str, function: Callable[[np.ndarray], Any]
) -> Callable[..., np.ndarray]:
    def advantages(rewards: np.ndarray, num_generations: int) -> np.ndarray:
        rewards = np.asarray(rewards)
        if rewards.ndim != 1 or rewards.size % num_generations:
            raise ValueError(
                f"{name}: expected rewards of shape [B * num_generations] with num_generations = "
                f"{num_generations}, got shape {list(rewards.shape)}"
            )
        groups = rewards.reshape(-1, num_generations)
        try:
            return np.asarray(function(groups), np.float32).reshape(-1)
        except ValueError as error:
            raise ValueError(f"{error}; N is GRPOConfig's num_generations") from None

    advantages.__name__ = advantages.__qualname__ = name
    return advantages


def _check_k(k: float) -> float:
    if isinstance(k, bool) or not isinstance(k, numbers.Real):
        raise TypeError(f"register: expected k to be a real number, got {k!r}")
    if not 1 <= k < math.inf:
        raise ValueError(f"register: expected k >= 1, got {k!r}")
    return k


def _registry() -> Any:
    try:
        from tunix.rl import algo_core, function_registry  # noqa: F401, its own come first
    except ImportError as error:
        raise missing_extra("maxpo.integrations.tunix", "tunix", "tunix", error) from error
    return function_registry
