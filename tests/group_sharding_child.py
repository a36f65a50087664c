"""Run by test_group_sharding.py on 8 simulated devices; prints one line a case."""

import inspect
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from maxpo import estimators, max_at_k, pass_at_k, rank_warp

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def blended(rewards, k, where=None):
    weight = rewards[..., 0] if where is None else 0.5
    return estimators.blended(weight=weight, k=k, rewards=rewards, where=where)


def off_policy_maxpo(rewards, k, where=None):
    return estimators.off_policy_maxpo(rewards, jnp.exp(rewards / 9), k, where=where)


def functions():
    for name in estimators.names():
        yield name, blended if name == "blended" else estimators.get(name)
    yield "leave_two_out_baseline", estimators.leave_two_out_baseline
    yield "off_policy_maxpo", off_policy_maxpo
    yield "max_at_k", max_at_k
    yield "standardize", estimators.standardize
    yield "pass_at_k", pass_at_k
    yield "rank_warp", rank_warp


def cases(function, rewards, where):
    """Yields (label, function of arrays, arrays); arguments go by place, and all by name."""
    parameters = inspect.signature(function).parameters
    first = next(iter(parameters))
    if "k" in parameters:
        k = jnp.float32(2.5)
        yield "static", lambda r: function(r, 3), (rewards,)
        yield "traced", lambda r, k: function(**{first: r}, k=k), (rewards, k)
        yield "masked", lambda r, k, w: function(where=w, k=k, **{first: r}), (rewards, k, where)
        ks = jnp.where(where[:, 0], 1.5, 3.0)
        yield "of each group", lambda r, k: function(r, k=k), (rewards, ks)
    else:
        options = {"rank_weights": (0.0, 1.0)} if "rank_weights" in parameters else {}
        yield "static", lambda r: function(r, **options), (rewards,)
        yield "masked", lambda r, w: function(where=w, **{first: r}, **options), (rewards, where)
    if function is estimators.maxpo:
        # Whichever argument lies on the mesh says where the groups are; the rewards need not.
        known = np.arange(where.size).reshape(where.shape) % 7
        yield "mask alone", lambda w: function(known, 3, where=w), (where,)
        yield "k alone", lambda k: function(known, k), (ks,)
        yield "known ks", lambda r: function(r, [1.5, 3] * (len(where) // 2)), (rewards,)


def main(kind, size):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType[kind],) * 2)
    by_group = NamedSharding(mesh, P("data"))
    binary = jax.random.bernoulli(jax.random.key(0), 0.4, (16, size)).astype(jnp.float32)
    graded = jax.random.normal(jax.random.key(1), (16, size))
    keep = jax.random.bernoulli(jax.random.key(2), 0.7, (16, size))
    for name, function in functions():
        if size <= 32 and name != "maxpo":
            continue  # Only the look-up of ranks differs between sizes, and all share it.
        rewards = binary if name in ("pass_at_k", "max_rl") else graded
        plain = cases(function, rewards, keep)
        sharded = cases(function, jax.device_put(rewards, by_group), jax.device_put(keep, by_group))
        for (label, one, arrays), (_, other, laid_out) in zip(plain, sharded, strict=True):
            expected = np.asarray(one(*arrays))
            with jax.set_mesh(mesh):
                compiled = jax.jit(other).lower(*laid_out).compile()
                result = compiled(*laid_out)
                text = compiled.as_text()
            print(
                json.dumps(
                    {
                        "name": name,
                        "label": label,
                        "collectives": [word for word in COLLECTIVES if word in text],
                        "spec": str(tuple(result.sharding.spec)[:1]),
                        "error": float(np.max(np.abs(expected - np.asarray(result)))),
                    }
                )
            )
    if kind == "Explicit":
        with jax.set_mesh(mesh):
            laid_out = jax.device_put(graded, by_group)
            for rewards, where, k in (
                (jax.device_put(graded, NamedSharding(mesh, P(None, "data"))), None, 2),
                (laid_out, keep[:3], 2),
                (laid_out, None, np.arange(16)),
                (laid_out, None, jax.device_put(jnp.arange(16), by_group)),
                (laid_out, None, [2, 2]),
            ):
                try:
                    jax.jit(lambda r, w, k=k: estimators.maxpo(r, k, where=w))(rewards, where)
                except ValueError as error:
                    print(json.dumps({"name": "error", "message": str(error)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
