"""What a step of a language model takes on a mesh: the compiler's figures beside the formulas.

Nothing is run and no parameter is allocated: sampling and update are compiled for simulated
devices, for which each count needs a process of its own.

    python -m maxpo.studies.speed.lm_scaling JSON

prints one line of JSON for the case that its argument describes.
"""

import functools
import json
import re
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
from maxpo.lm.model.generation import generate
from maxpo.lm.model.lora import LoRA, adapt
from maxpo.lm.model.policy import trainable
from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.model.sharding import RULES
from maxpo.lm.model.sharding import layout as layout_of
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.update import Batch, make_update
from maxpo.studies.speed.elsewhere import answer_elsewhere
from maxpo.studies.speed.moments import moment_bytes
from maxpo.studies.speed.work import adapter_count, parameter_count, update_flops

__all__ = [
    "COLLECTIVES",
    "Case",
    "communicated_bytes",
    "compile_case",
    "compile_elsewhere",
    "flops_of_device",
    "state_bytes",
]

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Case(NamedTuple):
    """One update, or the sampling before it, on one mesh.

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
      program: "update" or "sampling", of which the latter is one loop over tokens.
      cuts_tokens: Whether the T tokens of completions are spread over `data`, and no prompts: P is
        that of all devices.
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
    program: str = "update"
    cuts_tokens: bool = False
    lora_rank: int = 0


def compile_case(case: Case) -> dict[str, Any]:
    """Compiles the program for `data * model` devices, which must be there.

    Returns:
      For each device: "flops" and "bytes" of memory traffic, as the compiler counts them, a loop's
      body once; "arguments" and "temporaries" in bytes; how many collectives of each kind its
      program has.
    """
    lower = {"update": _lower_update, "sampling": _lower_sampling}[case.program]
    with parallel.use(parallel.make_mesh(case.data, case.model)):
        program: Any = lower(case, TransformerConfig(**case.shape)).compile()
    cost, memory, text = program.cost_analysis(), program.memory_analysis(), program.as_text()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": {kind: len(re.findall(rf" {kind}\(", text)) for kind in COLLECTIVES},
    }


def compile_elsewhere(case: Case) -> dict[str, Any]:
    """`compile_case` in a process that sees as many devices as the case has."""
    devices = case.data * case.model
    found: dict[str, Any] = answer_elsewhere(
        "maxpo.studies.speed.lm_scaling",
        case._asdict(),
        devices=devices,
        what=f"compiling for {devices} devices",
    )
    return found


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
    """Operations of the products of an update of all parameters, by device; see `update_flops`."""
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
    """Bytes that each device sends in an update of all parameters, float32, on a ring.

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


def _advantages(
    rewards: jax.Array,
    where: jax.Array,
    step: jax.Array,
    method: jax.Array,
    success_rate: jax.Array | None,
) -> jax.Array:
    return estimators.maxpo(rewards, 2, where=where)


def _lower_update(case: Case, shape: TransformerConfig) -> jax.stages.Lowered:
    settings = ConfigDict(case.rl)
    optimizer = functools.partial(make_optimizer, settings, rules=RULES)
    layout = functools.partial(layout_of, rules=RULES, fully_sharded=case.fully_sharded)
    graph, params, frozen = _model(case, shape)
    state = jax.eval_shape(lambda x: training.init_state(x, optimizer(1e-4)), params)
    update: Any = make_update(
        graph,
        settings,
        _advantages,
        optimizer=optimizer,
        layout=layout,
        frozen=_placed(frozen, layout(frozen)),
    )
    return update.func.lower(
        *update.args,
        _placed(state, layout(state)),
        _batch(case),
        jax.random.key(0),
        step=0,
        learning_rate=jnp.float32(1e-4),
    )


def _lower_sampling(case: Case, shape: TransformerConfig) -> jax.stages.Lowered:
    graph, *parts = _model(case, shape)

    @jax.jit
    def draw(parts: list[nnx.State], prompts: Prompts, key: jax.Array) -> Completions:
        return generate(
            nnx.merge(graph, *parts),
            prompts,
            group_size=case.group_size,
            max_new_tokens=case.new_tokens,
            eos_id=0,
            key=key,
        )

    specs = layout_of(parts, RULES, fully_sharded=case.fully_sharded)
    return draw.lower(_placed(parts, specs), _batch(case).prompts, jax.random.key(0))


def _model(case: Case, shape: TransformerConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Its structure, and the shapes of what is trained and of what is not."""

    def init() -> Transformer:
        model = Transformer(shape, rngs=nnx.Rngs(0))
        return adapt(model, LoRA(case.lora_rank), jax.random.key(0)) if case.lora_rank else model

    return trainable(nnx.eval_shape(init))


def _placed(tree: Any, specs: Any) -> Any:
    """The shapes of arrays, with where they lie on the mesh, if there is one."""
    if specs is None:
        return tree
    mesh = jax.sharding.get_mesh()

    def place(x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree, specs)


def _batch(case: Case) -> Batch:
    """The shapes of a batch, spread over `data` by prompts or by the tokens of completions."""
    P = case.prompts * (1 if case.cuts_tokens else case.data)
    N, S, T = case.group_size, case.prompt_length, case.new_tokens

    def arrays(shape: Sequence[int], *dtypes: Any) -> list[Any]:
        return [jax.ShapeDtypeStruct(tuple(shape), dtype) for dtype in dtypes]

    batch = Batch(
        Prompts(*arrays((P, S), jnp.int32, jnp.bool_)),
        Completions(*arrays((P, N, T), jnp.int32, jnp.float32, jnp.bool_)),
        *arrays((P, N), jnp.float32, jnp.bool_, jnp.bool_),
    )
    if parallel.current_mesh() is None:
        return batch
    of_prompts, of_tokens = PartitionSpec(parallel.DATA), PartitionSpec(None, None, parallel.DATA)

    def spec(x: jax.ShapeDtypeStruct) -> PartitionSpec:
        if case.cuts_tokens:
            return of_tokens if x.ndim == 3 else PartitionSpec()
        return of_prompts

    return _placed(batch, jax.tree.map(spec, batch))


if __name__ == "__main__":
    print(json.dumps(compile_case(Case(**json.loads(sys.argv[1])))))
