"""Configs: loading one, naming what is wrong with one, telling two apart."""

import difflib
import importlib.util
import inspect
import json
import math
import operator
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict


class UsageError(ValueError):
    """What the user asked for cannot be done; the message is one sentence that says why.

    `main` prints it without a traceback and exits with 2.
    """


def load_config(spec: str) -> ConfigDict:
    """Returns what `get_config` of a config file returns.

    Args:
      spec: `path/to/file.py`, or `path/to/file.py:variant` to call `get_config("variant")`.

    Raises:
      UsageError: If there is no such file, it has no such variant, or it is not a config file.
    """
    path, colon, variant = spec.partition(":")
    module = _load_module(path)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise UsageError(f"{path} defines no get_config()")
    arguments = [variant] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        expected = f"no variant, got {variant!r}" if colon else f"a variant: {path}:VARIANT"
        raise UsageError(f"{path} takes {expected}") from None
    try:
        config = get_config(*arguments)
    except ValueError as error:
        raise UsageError(f"{spec}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path} must return a ConfigDict, got {type(config).__name__}")
    return config


def variants_of(spec: str) -> tuple[str, ...]:
    """The variants that a config file lists as its `VARIANTS`; of a spec as in `load_config`."""
    return tuple(getattr(_load_module(spec.partition(":")[0]), "VARIANTS", ()))


def _load_module(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise UsageError(f"there is no config file {path}")
    spec = importlib.util.spec_from_file_location("maxpo_config", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config: expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_variant(variant: str, known: Collection[str]) -> None:
    """Raises ValueError if a config file has no such variant, naming those that it has.

    >>> check_variant("qick", ("default", "quick"))
    Traceback (most recent call last):
    ...
    ValueError: expected one of the variants default, quick; got 'qick'
    """
    if variant not in known:
        raise ValueError(f"expected one of the variants {', '.join(known)}; got {variant!r}")


def check_numbers(
    config: ConfigDict,
    *,
    at_least: Mapping[str, float] | None = None,
    above: Mapping[str, float] | None = None,
    finite: Iterable[str] = (),
    or_infinite: Collection[str] = (),
    whole: Collection[str] = (),
) -> None:
    """Raises ValueError unless fields hold finite numbers within their bounds, naming the first.

    Args:
      config: dotted names lead to its fields; of a tuple every element is checked.
      at_least: name -> the least number that makes sense.
      above: name -> a number that is already too small.
      finite: names of fields that may hold any number.
      or_infinite: names, among the others, for which infinity makes sense.
      whole: names, among the others, of integers.

    >>> check_numbers(ConfigDict({"rl": {"steps": 0}}), at_least={"rl.steps": 1})
    Traceback (most recent call last):
    ...
    ValueError: rl.steps: expected at least 1, got 0
    """
    bounds = [(name, x, operator.ge, f"at least {x:g}") for name, x in (at_least or {}).items()]
    bounds += [(name, x, operator.gt, f"more than {x:g}") for name, x in (above or {}).items()]
    bounds += [(name, -math.inf, operator.ge, "a finite number") for name in finite]
    for name, bound, fits, expected in bounds:
        found: Any = config
        for part in name.split("."):
            found = found[part]
        for value in found if isinstance(found, tuple | list) else (found,):
            kind, said = (Integral, "an integer") if name in whole else (Real, "a number")
            if not isinstance(value, kind) or isinstance(value, bool):
                of = said if expected == "a finite number" else f"{said} of {expected}"
                raise ValueError(f"{name}: expected {of}, got {value!r}")
            in_reach = math.isfinite(value) or name in or_infinite
            if not in_reach or not fits(value, bound):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")


def check_divisor(name: str, parts: int, *, of: str, whole: int) -> None:
    """Raises ValueError unless a field divides another, both of them positive.

    >>> check_divisor("rl.minibatches", 3, of="rl.prompts", whole=4)
    Traceback (most recent call last):
    ...
    ValueError: rl.minibatches: expected a divisor of rl.prompts = 4, got 3
    """
    if whole % parts:
        raise ValueError(f"{name}: expected a divisor of {of} = {whole}, got {parts}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a nested config under their dotted names.

    >>> flatten({"seed": 0, "policy": {"width": 64}})
    {'seed': 0, 'policy.width': 64}
    """
    fields = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict) and value
        fields.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return fields


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the fields in which two JSON configs differ, as `name: old -> new`.

    >>> differences({"k": 2, "policy": {"width": 64}}, {"k": 4, "policy": {"width": 64}, "seed": 0})
    ['k: 2 -> 4', 'seed: absent -> 0']
    """
    before, after = (
        {name: json.dumps(value) for name, value in flatten(config).items()}
        for config in (old, new)
    )
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a name that is not among the known ones, with the nearest of them.

    >>> print(unknown("config field", "lerning_rate", ["learning_rate", "seed"]))
    unknown config field lerning_rate (did you mean learning_rate?); known: learning_rate, seed
    """
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    return UsageError(f"unknown {what} {name}{hint}; known: {', '.join(known)}")
