"""Methods to compare, each written as one short string."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxpo import estimators, training


class Method(NamedTuple):
    """An advantage estimator with its settings; see `parse_method`.

    Attributes:
      estimator: One of `estimators.names()`.
      k: Its k at the first and behind the last update; None if it has none.
      options: Its other keyword arguments.
      learning_rate: Its own, or None for that of the config.
    """

    estimator: str
    k: tuple[float, float] | None
    options: dict[str, float]
    learning_rate: float | None

    @property
    def label(self) -> str:
        """How tables and figures call it: what tells methods apart, and no learning rate.

        >>> parse_method("maxpo:k=8->1,learning_rate=1e-4").label
        'maxpo k=8->1'
        """
        settings = {} if self.k is None else {"k": "->".join(f"{k:g}" for k in _ends(self.k))}
        settings |= {name: f"{value:g}" for name, value in self.options.items()}
        return " ".join([self.estimator, *(f"{name}={text}" for name, text in settings.items())])

    @property
    def folder(self) -> str:
        """The label as a part of a path.

        >>> parse_method("maxpo:k=8->1").folder
        'maxpo_k8-1'
        """
        return self.label.replace(" ", "_").replace("=", "").replace("->", "-")

    def advantages(
        self, rewards: jax.Array, where: jax.Array, step: jax.Array, steps: int
    ) -> jax.Array:
        """Advantages `[P, N]` of rewards at a step; k goes in a straight line over all `steps`."""
        k = training.k_schedule(*self.k, steps) if self.k else 1
        return training.bind_estimator(self.estimator, k, where=where, **self.options)(
            rewards, step
        )


def parse_method(spec: str) -> Method:
    """Reads `ESTIMATOR[:NAME=VALUE,...]`.

    Names are `k`, which may change in a straight line over the run, `learning_rate`, and whatever
    else the estimator takes: `"rloo"`, `"maxpo:k=4"`, `"maxpo:k=8->1"`, `"grpo:epsilon=1e-4"`.

    Raises:
      ValueError: If it is none of this, quoting the spec.

    >>> parse_method("maxpo:k=8->1")
    Method(estimator='maxpo', k=(8.0, 1.0), options={}, learning_rate=None)
    """
    name, colon, rest = spec.partition(":")
    try:
        parameters = _parameters(name)
    except ValueError as error:
        raise ValueError(f"method {spec!r}: {error}") from None
    if name == "l_statistic":
        raise ValueError(f"method {spec!r}: l_statistic takes rank weights, which no spec can give")
    values: dict[str, Any] = {}
    for setting in rest.split(",") if colon else []:
        option, equals, text = setting.partition("=")
        if not equals or option in values:
            raise ValueError(
                f"method {spec!r}: expected ESTIMATOR[:NAME=VALUE,...], each name once, "
                f"got {setting!r}"
            )
        if option not in {*parameters, "learning_rate"}:
            known = ", ".join([*parameters, "learning_rate"])
            raise ValueError(f"method {spec!r}: expected options among {known}; got {option!r}")
        values[option] = [_number(spec, part) for part in text.split("->")]
        if len(values[option]) > (2 if option == "k" else 1):
            raise ValueError(f"method {spec!r}: expected one number, or k=FIRST->LAST; got {text}")
    for option in parameters:
        if option not in values and parameters[option].default is inspect.Parameter.empty:
            raise ValueError(f"method {spec!r}: expected a {option}, as in {name}:{option}=4")
    k = values.pop("k", None)
    numbers = {option: value[0] for option, value in values.items()}
    rate = numbers.pop("learning_rate", None)
    if rate is not None and not rate > 0:
        raise ValueError(f"method {spec!r}: expected a learning_rate above 0, got {rate:g}")
    return Method(name, k and (k[0], k[-1]), numbers, rate)


def parse_methods(specs: Sequence[str], *, group_size: int) -> list[Method]:
    """Reads all of them and tries each on groups of that size.

    Raises:
      ValueError: If one cannot be read, its k does not fit the group, or two are the same.
    """
    methods = [parse_method(spec) for spec in specs]
    for spec, method in zip(specs, methods, strict=True):
        for k in method.k or (1.0,):
            try:
                advantages = training.bind_estimator(method.estimator, k, **method.options)
                advantages(jnp.zeros(group_size), jnp.int32(0))
            except ValueError as error:
                message = f"method {spec!r} with group_size = {group_size}: {error}"
                raise ValueError(message) from None
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"methods: expected different ones, got {label!r} twice")
    return methods


def choose_advantages(
    methods: Sequence[Method], steps: int
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """The advantages of several methods as one function, so that one program serves them all.

    Args:
      methods: At least one.
      steps: Updates of the whole run, over which k may change.

    Returns:
      (rewards `[P, N]`, where, updates done, number of the method) to advantages `[P, N]`.
    """

    def advantages(
        rewards: jax.Array, where: jax.Array, step: jax.Array, number: jax.Array
    ) -> jax.Array:
        branches = [
            lambda rewards, where, step, method=method: method.advantages(
                rewards, where, step, steps
            )
            for method in methods
        ]
        return jax.lax.switch(number, branches, rewards, where, step)

    return advantages


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    known = inspect.signature(estimators.get(name)).parameters
    return {option: known[option] for option in known if option not in ("rewards", "where")}


def _ends(k: tuple[float, float]) -> tuple[float, ...]:
    return k[:1] if k[0] == k[1] else k


def _number(spec: str, text: str) -> float:
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text):
        raise ValueError(f"method {spec!r}: expected a number, got {text!r}")
    return float(text)
