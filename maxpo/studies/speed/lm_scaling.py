"""What an update of a language model takes on a mesh: the compiler's figures beside the formulas.

Nothing is run and no parameter is allocated: the update is compiled for simulated devices, for
which each count needs a process of its own.

    python -m maxpo.studies.speed.lm_scaling JSON

prints one line of JSON for the case that its argument describes.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from maxpo import estimators, parallel, training
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.lora import LoRA, adapt
from maxpo.lm.model.policy import trainable
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.sharding import RULES
from maxpo.lm.model.sharding import layout as layout_of
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.update import Batch, make_update
from maxpo.studies.speed.moments import moment_bytes
from maxpo.studies.speed.work import adapter_count, parameter_count, update_flops

__all__ = [
    "COLLECTIVES",
    "Case",
    "communicated_bytes",
    "compile_elsewhere",
    "compile_update",
    "flops_of_device",
    "state_bytes",
]

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Case(NamedTuple):
    """One update on one mesh.

    Attributes:
      shape: Fields of the `TransformerConfig`.
      data: Devices over which the batch is spread.
      model: Devices over which matrices are cut.
      fully_sharded: Whether they are cut over `data`, too.
      prompts: P for each `data` device.
      group_size: N.
      prompt_length: S.
      new_tokens: T.
      rl: The `rl` of a config, for the update.
      lora_rank: Rank of the adapters that alone are trained. 0: everything is.
    """

    shape: dict[str, Any]
    data: int
    model: int
    fully_sharded: bool
    prompts: int
    group_size: int
    prompt_length: int
    new_tokens: int
    rl: dict[str, Any]
    lora_rank: int = 0


def compile_update(case: Case) -> dict[str, Any]:
    """Compiles the update for `data * model` devices, which must be there.

    Returns:
      For each device: "flops" and "bytes" of memory traffic, as the compiler counts them, a loop's
      body once; "arguments" and "temporaries" in bytes; how many collectives of each kind its
      program has.
    """
    shape = TransformerConfig(**case.shape)
    settings = ConfigDict(case.rl)

    optimizer = functools.partial(make_optimizer, settings, rules=RULES)

    def make() -> Transformer:
        model = Transformer(shape, rngs=nnx.Rngs(0))
        return adapt(model, LoRA(case.lora_rank), jax.random.key(0)) if case.lora_rank else model

    with parallel.use(parallel.make_mesh(case.data, case.model)):
        layout = functools.partial(layout_of, rules=RULES, fully_sharded=case.fully_sharded)
        graph, params, frozen = trainable(nnx.eval_shape(make))
        state = jax.eval_shape(lambda x: training.init_state(x, optimizer(1e-4)), params)
        over_data = None
        if (mesh := jax.sharding.get_mesh()).size > 1:
            over_data = NamedSharding(mesh, PartitionSpec(parallel.DATA))
        update: Any = make_update(
            graph,
            settings,
            _advantages,
            optimizer=optimizer,
            layout=layout,
            frozen=_placed(frozen, layout(frozen)),
        )
        lowered = update.func.lower(
            *update.args,
            _placed(state, layout(state)),
            _batch(case, over_data),
            jax.random.key(0),
            step=0,
            learning_rate=jnp.float32(1e-4),
        )
        program = lowered.compile()
    cost, memory, text = program.cost_analysis(), program.memory_analysis(), program.as_text()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": {kind: len(re.findall(rf" {kind}\(", text)) for kind in COLLECTIVES},
    }


def compile_elsewhere(case: Case) -> dict[str, Any]:
    """`compile_update` in a process that sees as many devices as the case has."""
    flags = f"--xla_force_host_platform_device_count={case.data * case.model}"
    done = subprocess.run(
        [sys.executable, "-m", "maxpo.studies.speed.lm_scaling", json.dumps(case._asdict())],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"compiling for {flags} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def state_bytes(case: Case) -> float:
    """Parameters and the optimizer's moments that one device holds.

    `(4 n + cut) / devices + whole` for n parameters and `moment_bytes`, where devices are `model`
    and, with fully sharded parameters, `model * data`. With AdamW `cut` is `8 n`. With
    adapters, of m parameters, it is `12 m` by AdamW and the frozen ones in their dtype.
    """
    shape = TransformerConfig(**case.shape)
    devices = case.model * (case.data if case.fully_sharded else 1)
    if case.lora_rank:
        frozen = jnp.dtype(shape.param_dtype).itemsize * parameter_count(shape)
        return (12 * adapter_count(shape, case.lora_rank) + frozen) / devices
    moments = moment_bytes(shape, case.rl["optimizer"])
    return (4 * parameter_count(shape) + moments.cut) / devices + moments.whole


def flops_of_device(case: Case) -> float:
    """Operations of the products of one update, for each device; see `update_flops`."""
    return (
        update_flops(
            TransformerConfig(**case.shape),
            prompts=case.prompts,
            group_size=case.group_size,
            prompt_length=case.prompt_length,
            new_tokens=case.new_tokens,
        )
        / case.model
    )


def communicated_bytes(case: Case) -> dict[str, float]:
    """Bytes that each device sends in one update, float32, on a ring.

    * "gradients": an all-reduce over `data`, `2 (d - 1) / d` times the device's part of them; fully
      sharded a reduce-scatter, half of that.
    * "parameters": fully sharded, gathered for the forward and once more for the backward pass.
    * "activations": an all-reduce after attention and one after the MLP, in both passes, over
      `model`.
    """
    shape = TransformerConfig(**case.shape)
    of_model = 4 * parameter_count(shape) / case.model
    d, m = case.data, case.model
    once = (d - 1) / d * of_model
    tokens = case.prompts * (case.prompt_length + case.group_size * case.new_tokens)
    width = jnp.dtype(shape.dtype).itemsize
    return {
        "gradients": once if case.fully_sharded else 2 * once,
        "parameters": 2 * once if case.fully_sharded else 0.0,
        "activations": 4 * shape.layers * 2 * (m - 1) / m * tokens * shape.hidden * width,
    }


def _placed(shapes: Any, specs: Any) -> Any:
    """Shapes that lie on the mesh where their specs say, if they say anything."""
    if specs is None:
        return shapes
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        shapes,
        specs,
    )


def _advantages(
    rewards: jax.Array,
    where: jax.Array,
    step: jax.Array,
    method: jax.Array,
    success_rate: jax.Array | None,
) -> jax.Array:
    return estimators.maxpo(rewards, 2, where=where)


def _batch(case: Case, sharding: NamedSharding | None) -> Batch:
    P, N, S, T = case.prompts * case.data, case.group_size, case.prompt_length, case.new_tokens

    def array(shape: Sequence[int], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

    samples = (P, N, T)
    return Batch(
        Prompts(array((P, S), jnp.int32), array((P, S), jnp.bool_)),
        Completions(
            array(samples, jnp.int32), array(samples, jnp.float32), array(samples, jnp.bool_)
        ),
        array((P, N), jnp.float32),
        array((P, N), jnp.bool_),
        array((P, N), jnp.bool_),
    )


if __name__ == "__main__":
    print(json.dumps(compile_update(Case(**json.loads(sys.argv[1])))))
