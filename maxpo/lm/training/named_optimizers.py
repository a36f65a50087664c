"""Optimizers by name, each written as one short string: a name with its options.

    adamw                    the default
    adamw:moments=bfloat16   first moments in half the memory
    lion:b1=0.95,b2=0.98     the sign of a momentum; no second moments
    adafactor                second moments of a matrix from its rows and columns; no first ones
    muon:momentum=0.9        an orthogonal matrix near to the momentum of each; AdamW for the rest

Each makes a direction d of the gradient. What follows is the same for all of them: weights w become
`w - learning_rate (d + weight_decay w)`, where the second term is of matrices alone.

* adamw: "Decoupled Weight Decay Regularization" (https://arxiv.org/abs/1711.05101).
* lion: "Symbolic Discovery of Optimization Algorithms" (https://arxiv.org/abs/2302.06675). All
  entries of d are 1 or -1: the paper advises a learning rate 3 to 10 times lower than AdamW's, and
  a weight decay as many times higher.
* adafactor: "Adaptive Learning Rates with Sublinear Memory Cost" (https://arxiv.org/abs/1804.04235),
  with its updates clipped to a root mean square of 1, but with learning rates as given: neither
  the paper's own schedule, nor its steps in proportion to the weights. Arrays whose two largest
  axes are at least 128 long are factored along these; one with the arrays of all layers is clipped
  as one.
* muon: "Muon: An optimizer for hidden layers in neural networks"
  (https://kellerjordan.github.io/posts/muon), with directions of the root mean square 0.2, as in
  "Muon is Scalable for LLM Training" (https://arxiv.org/abs/2502.16982), so that AdamW's learning
  rate and weight decay serve for both. What is a matrix is said by `matrix` of
  `maxpo.lm.model.sharding.Rule`.

Second moments are float32 whatever `moments` is. A step makes them smaller by a factor of b2 at
most. At b2 = 0.999 that is 1/1000 of them, and half the distance to the next number of bfloat16 is
at least 1/512: rounded to nearest, they would never fall.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from maxpo.lm.model.sharding import Rules, map_matrices

__all__ = [
    "DEFAULT_B2",
    "NamedOptimizer",
    "check_optimizer",
    "check_rules",
    "direction",
    "parse_optimizer",
]

DEFAULT_B2 = 0.95
"""What `b2` of a config is if nobody has set it."""

_MOMENTS = ("float32", "bfloat16")
_DEFAULTS: Mapping[str, Mapping[str, float | str]] = {
    "adamw": {"b1": 0.9, "moments": "float32"},
    "lion": {"b1": 0.9, "b2": 0.99, "moments": "float32"},
    "adafactor": {"decay": 0.8},
    "muon": {"momentum": 0.95, "b1": 0.9, "moments": "float32"},
}
_READ_B2 = ("adamw", "muon")
_NUMBER = re.compile(r"0?\.\d+|0")
_MUON_RMS = 0.2


class NamedOptimizer(NamedTuple):
    """An optimizer with all of its options; see `parse_optimizer`."""

    name: str
    options: Mapping[str, Any]

    @property
    def reads_b2(self) -> bool:
        """Whether it has AdamW's second moments, whose decay is the `b2` of a config."""
        return self.name in _READ_B2


def parse_optimizer(field: str, spec: str) -> NamedOptimizer:
    """Reads `NAME[:OPTION=VALUE,...]`; options that are not given have their defaults.

    Args:
      field: What errors call it.
      spec: The text.

    Raises:
      ValueError: If it is none of this.

    >>> parse_optimizer("rl.optimizer", "adamw:b1=0.8")
    NamedOptimizer(name='adamw', options={'b1': 0.8, 'moments': 'float32'})
    """
    name, colon, rest = spec.partition(":")
    if name not in _DEFAULTS:
        raise ValueError(f"{field}: expected one of {', '.join(_DEFAULTS)}, got {name!r}")
    given: dict[str, float | str] = {}
    for setting in rest.split(",") if colon else []:
        option, equals, text = setting.partition("=")
        if not equals or option in given:
            raise ValueError(
                f"{field}: expected NAME[:OPTION=VALUE,...], each option once, got {spec!r}"
            )
        if option not in _DEFAULTS[name]:
            raise ValueError(
                f"{field}: expected options of {name} among {', '.join(_DEFAULTS[name])}, got "
                f"{option!r}"
            )
        given[option] = _value(field, option, text)
    return NamedOptimizer(name, {**_DEFAULTS[name], **given})


def check_optimizer(part: str, section: ConfigDict) -> None:
    """Checks the `optimizer` of a part of a config, and that it reads what was set for it.

    Args:
      part: The name of the part.
      section: The part.

    Raises:
      ValueError: If it cannot be read, or `b2` is set and not read.
    """
    optimizer = parse_optimizer(f"{part}.optimizer", section.optimizer)
    if section.b2 != DEFAULT_B2 and not optimizer.reads_b2:
        raise ValueError(
            f"{part}.b2: expected the default of {DEFAULT_B2} for {part}.optimizer="
            f"{section.optimizer}, which does not read it, got {section.b2}"
        )


def check_rules(field: str, optimizer: NamedOptimizer, rules: Rules | None) -> None:
    """Raises ValueError, naming the field, if Muon would find no matrix by the rules of a model."""
    if optimizer.name == "muon" and not any(rule.matrix for rule in (rules or {}).values()):
        raise ValueError(
            f"{field}: expected a policy for muon whose `rules` have a `matrix`, as "
            "maxpo.lm.model.sharding.RULES, got one without"
        )


def direction(
    optimizer: NamedOptimizer, b2: float, rules: Rules | None
) -> optax.GradientTransformation:
    """The gradient to the direction in which the weights go down.

    Args:
      optimizer: What it is.
      b2: Decay of AdamW's second moments.
      rules: Those of the model, in which Muon finds its matrices.
    """
    options = dict(optimizer.options)
    if "moments" in options:
        options["mu_dtype"] = jnp.dtype(options.pop("moments"))
    if optimizer.name == "adamw":
        return optax.scale_by_adam(b2=b2, **options)
    if optimizer.name == "lion":
        return optax.scale_by_lion(**options)
    if optimizer.name == "adafactor":
        factored = optax.scale_by_factored_rms(decay_rate=options["decay"])
        return optax.chain(factored, optax.clip_by_block_rms(1.0))
    return _muon(b2, rules or {}, **options)


def _muon(
    b2: float, rules: Rules, *, momentum: float, b1: float, mu_dtype: jnp.dtype
) -> optax.GradientTransformation:
    def axes(tree: Any) -> Any:
        return map_matrices(
            lambda matrix: MuonDimensionNumbers(*matrix), tree, rules, otherwise=None
        )

    def labels(params: Any) -> Any:
        return map_matrices(lambda found: "muon", params, rules, otherwise="adamw")

    orthogonal = scale_by_muon(beta=momentum, mu_dtype=mu_dtype, weight_dimension_numbers=axes)
    adam = optax.scale_by_adam(b1=b1, b2=b2, mu_dtype=mu_dtype)
    steps = {"muon": optax.chain(orthogonal, _scaled_to_rms(axes)), "adamw": adam}
    return optax.partition(steps, labels)


def _scaled_to_rms(axes: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Of an orthogonal A x B matrix it is `max(A, B) ** -0.5`: min(A, B) singular values are 1."""

    def scaled(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
        longest = max(math.prod(update.shape[i] for i in side) for side in axes)
        return _MUON_RMS * math.sqrt(longest) * update

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates, axes(updates)))


def _value(field: str, option: str, text: str) -> float | str:
    if option == "moments":
        if text not in _MOMENTS:
            raise ValueError(f"{field}: expected moments={' or '.join(_MOMENTS)}, got {text!r}")
        return text
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{field}: expected a number from 0 to below 1 as {option}, got {text!r}")
    return float(text)
