"""Methods to compare, each written as one short string: an estimator with its settings.

    maxpo:k=4                     estimators with a k need one
    maxpo:k=8->1                  k changes in a straight line over the run
    maxpo:k=adaptive              k of each problem, from how often it was solved in past steps;
                                  with target=0.5,k_max=8, see maxpo.adaptive_k
    blended:k=4,weight=0.5        any other number that the estimator takes
    rloo:learning_rate=1e-4       a learning rate of its own, for every training run
    grpo:entropy=0.01             what a study adds; here the maze's entropy bonus

Bandits, mazes, language models and Tunix all read this language; only bandits and language models
have problems that come again, of which k=adaptive needs to know.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

from maxpo import estimators
from maxpo.adaptive_k import AdaptiveK, adaptive_k

__all__ = [
    "BINARY",
    "Advantages",
    "K",
    "Method",
    "bind_estimator",
    "check_graded",
    "choose_advantages",
    "k_schedule",
    "needs_only_k",
    "parse_method",
    "parse_methods",
]

K: TypeAlias = float | Callable[[Any], Any] | AdaptiveK

BINARY = ("max_rl", "pass_at_k_training")
"""Estimators whose formula takes rewards for 0 or 1."""

_ADAPTIVE = "adaptive"  # What k is in a spec where it adapts.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")


class Advantages(Protocol):
    """A bound estimator."""

    def __call__(
        self,
        rewards: jax.Array,
        step: jax.Array | int,
        where: jax.Array | None = None,
        success_rate: jax.Array | None = None,
    ) -> jax.Array:
        """Advantages of rewards, both `[..., N]`, after `step` updates.

        An adaptive k needs the success rate `[...]` of each group's problem in past steps.
        """


class Method(NamedTuple):
    """An advantage estimator with its settings; see `parse_method`.

    Attributes:
      estimator: Its name, see `estimators.get`.
      k: Its k at the first update and after the last, or how k adapts; None if it has none.
      options: Its other keyword arguments.
      learning_rate: Its own, or None for that of the config.
      extra: What the study adds to the language.
    """

    estimator: str
    k: tuple[float, float] | AdaptiveK | None
    options: dict[str, float]
    learning_rate: float | None
    extra: Mapping[str, float | str] = MappingProxyType({})

    @property
    def label(self) -> str:
        """Its name in tables and figures: what tells methods apart, and no learning rate.

        >>> parse_method("maxpo:k=8->1,learning_rate=1e-4").label
        'maxpo k=8->1'
        """
        settings = _words_of_k(self.k)
        for name, value in {**self.options, **self.extra}.items():
            settings[name] = value if isinstance(value, str) else f"{value:g}"
        return " ".join([self.estimator, *(f"{name}={text}" for name, text in settings.items())])

    @property
    def folder(self) -> str:
        """The label as a part of a path.

        >>> parse_method("maxpo:k=8->1").folder
        'maxpo_k8-1'
        """
        return self.label.replace(" ", "_").replace("=", "").replace("->", "-")

    @property
    def adapts(self) -> bool:
        """Whether its k follows the success rate of each problem."""
        return isinstance(self.k, AdaptiveK)

    def bind(self, steps: int) -> Advantages:
        """The advantages, with a k that changes in a straight line over `steps` updates."""
        if isinstance(self.k, AdaptiveK):
            return bind_estimator(self.estimator, self.k, **self.options)
        k = k_schedule(*self.k, steps) if self.k else 1
        return bind_estimator(self.estimator, k, **self.options)


def parse_method(
    spec: str,
    *,
    extra: Mapping[str, Collection[str]] | None = None,
    adaptive: bool = False,
) -> Method:
    """Reads `ESTIMATOR[:NAME=VALUE,...]`.

    Names are `k`, which may change in a straight line over the run, `learning_rate`, and whatever
    else the estimator takes: `"rloo"`, `"maxpo:k=4"`, `"maxpo:k=8->1"`, `"grpo:epsilon=1e-4"`.

    Args:
      spec: The text.
      extra: Further names, with the words that they may be instead of a number.
      adaptive: Whether k may be `adaptive`, with `target` and `k_max` of `AdaptiveK`.

    Raises:
      ValueError: If it is none of this, quoting the spec.

    >>> parse_method("maxpo:k=8->1")
    Method(estimator='maxpo', k=(8.0, 1.0), options={}, learning_rate=None, extra={})
    >>> parse_method("grpo:entropy=sweep", extra={"entropy": ("sweep",)}).extra
    {'entropy': 'sweep'}
    """
    words = extra or {}
    name, colon, rest = spec.partition(":")
    try:
        parameters = _parameters(name)
    except ValueError as error:
        raise ValueError(f"method {spec!r}: {error}") from None
    if name == "l_statistic":
        raise ValueError(f"method {spec!r}: l_statistic takes rank weights, which no spec can give")
    adapts = adaptive and "k" in parameters
    of_k = AdaptiveK._fields if adapts else ()
    known = [*parameters, *of_k, "learning_rate", *words]
    values: dict[str, Any] = {}
    for setting in rest.split(",") if colon else []:
        option, equals, text = setting.partition("=")
        if not equals or option in values:
            raise ValueError(
                f"method {spec!r}: expected ESTIMATOR[:NAME=VALUE,...], each name once, "
                f"got {setting!r}"
            )
        if option not in known:
            raise ValueError(
                f"method {spec!r}: expected options among {', '.join(known)}; got {option!r}"
            )
        if text in words.get(option, ()) or (adapts and (option, text) == ("k", _ADAPTIVE)):
            values[option] = [text]
            continue
        values[option] = [_number(spec, part) for part in text.split("->")]
        if len(values[option]) > (2 if option == "k" else 1):
            raise ValueError(f"method {spec!r}: expected one number, or k=FIRST->LAST; got {text}")
    for option in parameters:
        if option not in values and parameters[option].default is inspect.Parameter.empty:
            raise ValueError(f"method {spec!r}: expected a {option}, as in {name}:{option}=4")
    k = _pop_k(spec, values)
    singles = {option: value[0] for option, value in values.items()}
    rate = singles.pop("learning_rate", None)
    if rate is not None and not rate > 0:
        raise ValueError(f"method {spec!r}: expected a learning_rate above 0, got {rate:g}")
    added = {option: singles.pop(option) for option in words if option in singles}
    for option, value in added.items():
        if not isinstance(value, str) and value < 0:
            raise ValueError(f"method {spec!r}: expected {option} of at least 0, got {value:g}")
    return Method(name, k, singles, rate, added)


def parse_methods(
    specs: Sequence[str],
    *,
    group_size: int,
    extra: Mapping[str, Collection[str]] | None = None,
    adaptive: bool = False,
) -> list[Method]:
    """Reads all of them and tries each on groups of that size.

    Args:
      specs: As for `parse_method`.
      group_size: N.
      extra: As for `parse_method`.
      adaptive: As for `parse_method`.

    Raises:
      ValueError: If there is none, one cannot be read, its k does not fit the group, or two are the
        same.
    """
    if not specs:
        raise ValueError("methods: expected at least one, such as maxpo:k=8; got none")
    methods = [parse_method(spec, extra=extra, adaptive=adaptive) for spec in specs]
    for spec, method in zip(specs, methods, strict=True):
        ks = (method.k.k_max,) if isinstance(method.k, AdaptiveK) else method.k
        for k in ks or (1.0,):
            try:
                advantages = bind_estimator(method.estimator, k, **method.options)
                advantages(jnp.zeros(group_size), 0)
            except ValueError as error:
                which = ", the k_max of k=adaptive" if isinstance(method.k, AdaptiveK) else ""
                message = f"method {spec!r} with group_size = {group_size}: {error}{which}"
                raise ValueError(message) from None
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"methods: expected different ones, got {label!r} twice")
    return methods


def choose_advantages(
    methods: Sequence[Method], steps: int
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """The advantages of several methods as one function, so that one program serves them all.

    Args:
      methods: At least one.
      steps: Updates of the whole run, over which k may change.

    Returns:
      (rewards `[P, N]`, where, updates done, number of the method, success rates `[P]` of past
      steps, or None where no method adapts its k) to advantages `[P, N]`.
    """
    branches = [method.bind(steps) for method in methods]

    def advantages(
        rewards: jax.Array,
        where: jax.Array,
        step: jax.Array,
        number: jax.Array,
        success_rate: jax.Array | None = None,
    ) -> jax.Array:
        return jax.lax.switch(number, branches, rewards, step, where, success_rate)

    return advantages


def k_schedule(initial: float, final: float, updates: int) -> float | Callable[[Any], Any]:
    """A k that goes from `initial` to `final` in a straight line over `updates`, then constant.

    A k that does not change stays a number, whose gap weights are then computed while tracing.

    Raises:
      ValueError: If a k is below 1, or it changes over less than one update.
    """
    if not (initial >= 1 and final >= 1):
        raise ValueError(f"expected k >= 1, got k from {initial} to {final}")
    if initial == final:
        return initial
    if updates < 1:
        raise ValueError(f"expected k to change over at least 1 update, got {updates}")
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
      names: Names of estimators.
      field: What the config calls them.
      setting: The field of the config that makes rewards graded.
    """
    for name in names:
        if name in BINARY:
            raise ValueError(
                f"{field}: expected estimators of graded rewards, as {setting} says, got {name}, "
                "which needs rewards of 0 or 1"
            )


def bind_estimator(name: str, k: K, **options: Any) -> Advantages:
    """The named estimator as a function of rewards and the update's number.

    Args:
      name: One of `estimators.names()`.
      k: A number, or an optax schedule of the update's number; it may change from update to update
        without another compilation. Or an `AdaptiveK`, of the success rates that come with the
        rewards. Estimators of the mean have no k and ignore it.
      **options: Further keyword arguments of the estimator, such as GRPO's `epsilon`.

    Returns:
      The advantages.

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
        raise TypeError(f"{name}: expected options among {[*parameters][1:]}, got {unknown}")
    needed = {p.name for p in parameters.values() if p.default is p.empty} - {"rewards", "k"}
    if not needed <= {*options}:
        raise TypeError(f"{name}: expected the options {sorted(needed)}, got {sorted(options)}")

    def advantages(
        rewards: jax.Array,
        step: jax.Array | int,
        where: jax.Array | None = None,
        success_rate: jax.Array | None = None,
    ) -> jax.Array:
        of_k = {"k": _k_now(k, step, success_rate)} if "k" in parameters else {}
        return function(rewards, **of_k, where=where, **options)

    return advantages


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    known = inspect.signature(estimators.get(name)).parameters
    return {option: known[option] for option in known if option not in ("rewards", "where")}


def _k_now(k: K, step: jax.Array | int, success_rate: jax.Array | None) -> Any:
    if isinstance(k, AdaptiveK):
        if success_rate is None:
            raise ValueError("success_rate: expected one of each group for an adaptive k, got None")
        return adaptive_k(success_rate, **k._asdict())
    return k(step) if callable(k) else k


def _pop_k(spec: str, values: dict[str, Any]) -> tuple[float, float] | AdaptiveK | None:
    """Takes what concerns k out of the values of a spec."""
    k = values.pop("k", None)
    settings = {name: values.pop(name)[0] for name in AdaptiveK._fields if name in values}
    if k == [_ADAPTIVE]:
        found = AdaptiveK(**settings)
        try:
            adaptive_k(found.target, **found._asdict())
        except ValueError as error:
            raise ValueError(f"method {spec!r}: {error}") from None
        return found
    if settings:
        raise ValueError(f"method {spec!r}: expected {min(settings)} beside k={_ADAPTIVE} only")
    return k and (k[0], k[-1])


def _words_of_k(k: tuple[float, float] | AdaptiveK | None) -> dict[str, str]:
    """What a label says of it, by the names of a spec."""
    if k is None:
        return {}
    if isinstance(k, AdaptiveK):
        return {"k": _ADAPTIVE, **{name: f"{value:g}" for name, value in k._asdict().items()}}
    return {"k": "->".join(f"{each:g}" for each in (k[:1] if k[0] == k[1] else k))}


def _number(spec: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"method {spec!r}: expected a number, got {text!r}")
    return float(text)
