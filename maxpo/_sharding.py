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

from maxpo._numbers import as_floats, is_scalar, is_traced

Function = TypeVar("Function", bound=Callable[..., jax.Array])


def group_local(
    *, samples: tuple[str, ...], groups: tuple[str, ...] = (), reduces: bool = False
) -> Callable[[Function], Function]:
    """Decorates a public function of groups to run where its groups are.

    Only traced values of a mesh with explicit axes, and arrays that lie on one, take another way
    than before: `jax.shard_map` over all axes. No collective can come of that. The group axis must
    not be sharded. Arguments that are not named are the same on every device.

    Args:
      samples: Arguments `[..., N]`. The first one gives the shape, to which the others broadcast;
        they lie where the first of them that is sharded does.
      groups: Arguments that broadcast to `[...]`, unless they are one number for all groups.
      reduces: The result is `[...]` and not `[..., N]`.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        assert {*samples, *groups} <= signature.parameters.keys()

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> jax.Array:
            if not any(map(_explicit_sharding, (*args, *kwargs.values()))):
                return function(*args, **kwargs)
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # It says what is wrong.
            first = f"{function.__name__}: expected {samples[0]}"
            arguments[samples[0]] = as_floats(arguments[samples[0]], first)
            shape = arguments[samples[0]].shape
            shapes = dict.fromkeys(samples, shape) | dict.fromkeys(groups, shape[:-1])
            mesh, spec = _where_groups_are(arguments, shapes, len(shape))
            if mesh is None:
                return function(*args, **kwargs)
            if spec[-1] is not None:
                raise ValueError(
                    f"{first} with each group (the last axis) on one device, got the sharding "
                    f"{spec}"
                )

            def call(changed: dict[str, Any]) -> jax.Array:
                bound = signature.bind_partial()
                bound.arguments = {**arguments, **changed}
                return function(*bound.args, **bound.kwargs)

            shapes = {
                name: shape
                for name, shape in shapes.items()
                if name in samples or not is_scalar(arguments[name])
            }
            if any(name in groups and not is_traced(arguments[name]) for name in shapes):
                # They are traced below, so the function checks them here, beside whole groups.
                jax.eval_shape(
                    call,
                    {
                        name: jax.ShapeDtypeStruct(value.shape, value.dtype)
                        for name, value in arguments.items()
                        if name in samples and isinstance(value, jax.Array)
                    },
                )

            sharded, specs = {}, {}
            for name, value in arguments.items():
                if name in shapes and value is not None:
                    specs[name] = PartitionSpec(*spec[: len(shapes[name])])
                    try:
                        value = jnp.broadcast_to(jnp.asarray(value), shapes[name])
                    except ValueError:
                        return function(*args, **kwargs)  # It says what is wrong.
                elif isinstance(value, jax.core.Tracer):
                    specs[name] = PartitionSpec()
                else:
                    continue  # Known values stay as they are, so that they are still checked.
                sharded[name] = jax.sharding.reshard(value, NamedSharding(mesh, specs[name]))

            return jax.shard_map(
                call,
                mesh=mesh,
                in_specs=(specs,),
                out_specs=PartitionSpec(*spec[:-1]) if reduces else spec,
                check_vma=False,  # Constants of the kernel vary over no axis; that is as it should.
            )(sharded)

        return wrapper  # type: ignore[return-value]

    return decorate


def _where_groups_are(
    arguments: dict[str, Any], shapes: dict[str, tuple[int, ...]], rank: int
) -> tuple[Any, PartitionSpec]:
    """The mesh and the sharding of rank `rank` of the first whole argument that has one."""
    for name, shape in shapes.items():
        sharding = _explicit_sharding(arguments.get(name))
        if sharding is not None and arguments[name].shape == shape:
            return sharding.mesh, PartitionSpec(*sharding.spec, *[None] * (rank - len(shape)))
    return None, PartitionSpec()


def _explicit_sharding(value: Any) -> NamedSharding | None:
    """The sharding of an array that explicit axes of a mesh divide."""
    if not isinstance(value, jax.Array) or value.ndim == 0:
        return None
    sharding = jax.typeof(value).sharding
    named: set[Any] = set()
    for axes in sharding.spec:
        named.update(axes if isinstance(axes, tuple) else (axes,))
    return sharding if named & set(sharding.mesh.explicit_axes) else None
