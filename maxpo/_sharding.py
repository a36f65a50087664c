"""Functions of groups on a mesh with explicit axes: each device computes the groups it holds.

Under `Auto` axes XLA finds by itself that an estimator needs no communication. Under `Explicit`
ones JAX asks for the sharding of every intermediate value instead, and refuses the gathers of the
kernel. Saying once that groups are independent answers all of that.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., jax.Array])


def group_local(*, per_group: bool = False) -> Callable[[Function], Function]:
    """Decorates a public function of `rewards` `[..., N]` to run where its groups are.

    Only traced values of a mesh with explicit axes, and arrays that lie on one, take another way
    than before: `jax.shard_map` over all axes. No collective can come of that. The group axis must
    not be sharded. `where`, and a `weight` for each group, follow the rewards; all other arguments
    are the same on every device.

    Args:
      per_group: The result is `[...]` and not `[..., N]`.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> jax.Array:
            sharding = _explicit_sharding(args[0] if args else kwargs.get("rewards"))
            if sharding is None:
                return function(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            rewards = next(iter(arguments.values()))
            spec = sharding.spec
            if spec[-1] is not None:
                raise ValueError(
                    f"{function.__name__}: expected rewards with each group (the last axis) on one "
                    f"device, got the sharding {spec}."
                )
            # Whatever is not traced stays as it is, so that a known k is still checked.
            sharded = {
                name: value
                for name, value in arguments.items()
                if isinstance(value, jax.core.Tracer)
                or value is rewards
                or (name in ("where", "weight") and value is not None)
            }
            specs = {}
            for name, value in sharded.items():
                specs[name] = PartitionSpec()
                if value is rewards:
                    specs[name] = spec
                elif name in ("where", "weight"):
                    shape = rewards.shape if name == "where" else rewards.shape[:-1]
                    specs[name] = PartitionSpec(*spec[: len(shape)])
                    try:
                        value = jnp.broadcast_to(value, shape)
                    except ValueError:
                        return function(*args, **kwargs)  # It says what is wrong.
                    sharded[name] = jax.sharding.reshard(
                        value, NamedSharding(sharding.mesh, specs[name])
                    )

            def local(sharded: dict[str, Any]) -> jax.Array:
                bound = signature.bind_partial()
                bound.arguments = {**arguments, **sharded}
                return function(*bound.args, **bound.kwargs)

            return jax.shard_map(
                local,
                mesh=sharding.mesh,
                in_specs=(specs,),
                out_specs=PartitionSpec(*spec[:-1]) if per_group else spec,
                check_vma=False,  # Constants of the kernel vary over no axis; that is as it should.
            )(sharded)

        return wrapper  # type: ignore[return-value]

    return decorate


def _explicit_sharding(rewards: Any) -> NamedSharding | None:
    """The sharding of an array of which some axis is divided over explicit axes of a mesh."""
    if not isinstance(rewards, jax.Array) or rewards.ndim == 0:
        return None
    sharding = jax.typeof(rewards).sharding
    named: set[Any] = set()
    for axes in sharding.spec:
        named.update(axes if isinstance(axes, tuple) else (axes,))
    return sharding if named & set(sharding.mesh.explicit_axes) else None
