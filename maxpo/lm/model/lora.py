"""LoRA: low-rank adapters beside the frozen matrices of a transformer.

    W x + alpha / rank * B A x

with W frozen and A, B trained, see "LoRA: Low-Rank Adaptation of Large Language Models"
(https://arxiv.org/abs/2106.09685). B begins at 0, so an adapted model begins as the one it is made
of. Gradients, optimizer and checkpoints have the size of the adapters alone.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maxpo.lm.model._layer import Adapter
from maxpo.lm.model.sharding import ADAPTED
from maxpo.lm.model.transformer import Transformer

__all__ = ["Adapters", "LoRA", "adapt", "adapters_of", "merged"]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which matrices get adapters, and how large these are.

    Attributes:
      rank: Columns of A and rows of B.
      alpha: The product of A and B is scaled by `alpha / rank`.
      targets: Matrices of `LayerWeights`, in all layers. `qkv` is one matrix from the states to
        queries, keys and values, which therefore share their A.

    Raises:
      ValueError: If a number makes no sense or there is no such matrix.
    """

    rank: int
    alpha: float = 32.0
    targets: tuple[str, ...] = ADAPTED

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"lora.rank: expected a positive integer, got {self.rank!r}")
        is_number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not is_number or not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha: expected a positive number, got {self.alpha!r}")
        object.__setattr__(self, "targets", tuple(self.targets))
        unknown = [name for name in self.targets if name not in ADAPTED]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"lora.targets: expected some of {', '.join(ADAPTED)}, each once, got "
                f"{list(self.targets)}"
            )


class Adapters(nnx.Module):
    """The adapters of all layers, float32, stacked along a leading axis: `NAME_a` and `NAME_b`."""

    def __init__(self, layers: nnx.Module, lora: LoRA, *, key: jax.Array):
        self.lora = lora
        for number, name in enumerate(lora.targets):
            count, width, *outputs = getattr(layers, name).shape
            # Uniform as in the authors' code, though the paper says normal: learning rates that
            # others found are worth the same here.
            bound = width**-0.5
            a = jax.random.uniform(
                jax.random.fold_in(key, number),
                (count, width, lora.rank),
                jnp.float32,
                -bound,
                bound,
            )
            setattr(self, f"{name}_a", nnx.LoRAParam(a))
            setattr(self, f"{name}_b", nnx.LoRAParam(jnp.zeros((count, lora.rank, *outputs))))

    def weights(self) -> dict[str, Adapter]:
        """The adapters by the names of their matrices, with `alpha / rank` in their B."""
        scale = self.lora.alpha / self.lora.rank
        return {
            name: Adapter(getattr(self, f"{name}_a")[...], scale * getattr(self, f"{name}_b")[...])
            for name in self.lora.targets
        }


def adapt(model: nnx.Module, lora: LoRA, key: jax.Array) -> Transformer:
    """A model with new adapters, which computes what the given one does.

    Args:
      model: A `Transformer`. It is not changed; the result shares its arrays.
      lora: Which adapters.
      key: PRNG key of the random A.

    Raises:
      ValueError: If the model is no `Transformer`, or has adapters already.
    """
    if not isinstance(model, Transformer):
        raise ValueError(
            f"lora: expected a Transformer, got {type(model).__name__}; a policy of another kind "
            "that comes with nnx.LoRAParam of its own trains those alone"
        )
    if adapters_of(model) is not None:
        raise ValueError("lora: expected none for a policy that has adapters already")
    adapted = nnx.merge(*nnx.split(model))
    adapted.layers.adapters = nnx.data(Adapters(adapted.layers, lora, key=key))
    return adapted


def adapters_of(model: nnx.Module) -> Adapters | None:
    """The adapters of a transformer; None where it has none or the module is another."""
    return model.layers.adapters if isinstance(model, Transformer) else None


def merged(model: Transformer) -> nnx.State:
    """The parameters of the model without adapters that computes the same.

    `W + alpha / rank A B` in float32, whatever the dtype of W, because the change may be less than
    bfloat16 has room for. Without adapters these are the model's own parameters.
    """
    adapters = adapters_of(model)
    if adapters is None:
        return nnx.state(model)
    plain = nnx.merge(*nnx.split(model))
    plain.layers.adapters = nnx.static(None)
    state: Any = nnx.state(plain)
    for name, adapter in adapters.weights().items():
        kernel = state["layers"][name][...]
        # Where the matrix lies there its sum lies, too.
        add = jax.jit(_add, out_shardings=kernel.sharding)
        state["layers"][name] = nnx.Param(add(kernel, adapter))
    return state


def _add(kernel: jax.Array, adapter: Adapter) -> jax.Array:
    change = jnp.einsum("lir,lr...->li...", *adapter, precision="highest")
    return kernel.astype(jnp.float32) + change
