"""How many bytes the moments of an optimizer take, from the shape of a transformer."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.sharding import RULES
from maxpo.lm.training.named_optimizers import parse_optimizer
from maxpo.studies.speed.work import matrix_shapes

__all__ = ["Moments", "moment_bytes"]

_FACTORED = 128  # Adafactor's least length of both axes.
_FLOAT32 = 4


class Moments(NamedTuple):
    """Bytes of an optimizer's moments.

    Attributes:
      cut: Of those in the shape of their parameters, which lie on a mesh as these do.
      whole: Of factored ones, which every device has.
    """

    cut: float
    whole: float


def moment_bytes(shape: TransformerConfig, optimizer: str) -> Moments:
    """Bytes of the moments of all matrices; norms and biases are not counted.

    With first moments of b bytes, 4 or 2, for each entry of a matrix:

    * adamw: `b + 4`;
    * lion: `b`;
    * muon: `b`, of embeddings `b + 4`;
    * adafactor: 4, but `4 / m + 4 / n` of an array whose two largest axes, m and n, are at least
      128 long.

    Args:
      shape: The transformer's.
      optimizer: The `rl.optimizer` of a config.
    """
    name, options = parse_optimizer("optimizer", optimizer)
    first = jnp.dtype(options.get("moments", "float32")).itemsize
    cut = whole = 0.0
    for of, axes in matrix_shapes(shape).items():
        count = math.prod(axes)
        shorter, longer = sorted(axes)[-2:]
        if name == "adafactor" and shorter >= _FACTORED:
            whole += _FLOAT32 * (count / shorter + count / longer)
        elif name == "adafactor":
            cut += _FLOAT32 * count
        elif name == "lion" or (name == "muon" and RULES[of].matrix):
            cut += first * count
        else:
            cut += (first + _FLOAT32) * count
    return Moments(cut, whole)
