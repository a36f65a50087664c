"""Compiles a language model's step for meshes of simulated devices and tells what it takes.

Weak scaling: operations and memory traffic of each device as devices are added at the same work for
each, in the update and in the sampling. Large models: what a device holds, beside the formulas of
docs/scaling.md. Long samples: the same update on ever more devices, which share its tokens.
Optimizers: the bytes of weights and moments. Adapters: what one device holds that trains them, and
without them.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.training.named_optimizers import parse_optimizer
from maxpo.studies.speed import lm_scaling
from maxpo.studies.speed.lm_scaling import Case

__all__ = [
    "MESH",
    "PARTS",
    "check_config",
    "large_cases",
    "long_cases",
    "lora_cases",
    "optimizer_cases",
    "row",
    "sampling_cases",
    "train_and_evaluate",
    "weak_cases",
]

MESH = ("data", "model")
PARTS = ("weak", "large", "long", "optimizers", "lora")


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, the rows of the table."""
    check_config(config)
    makers = (weak_cases, sampling_cases, large_cases, long_cases, optimizer_cases, lora_cases)
    cases = {name: case for make in makers for name, case in make(config).items()}
    if not cases:
        raise ValueError(
            "weak.devices, large.models, long.devices, optimizers.names, lora.ranks: expected some "
            "to compile for, got none"
        )
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        rows = {}
        for name, case in runs.progress(cases.items(), unit="programs"):
            rows[name] = row(case, lm_scaling.compile_elsewhere(case))
            run.log(len(rows), {"case": name, **rows[name]})
        return run.finish(rows)


def check_config(config: ConfigDict) -> None:
    """Raises ValueError if a number of the config makes no sense, naming it."""
    work = ("prompts", "group_size", "prompt_length", "new_tokens")
    meshes = [f"large.models.{name}.{axis}" for name in config.large.models for axis in MESH]
    names = [f"{part}.{name}" for part in PARTS for name in work]
    names += ["weak.devices", "weak.model", "long.devices", "optimizers.devices", *meshes]
    runs.check_numbers(config, at_least={**dict.fromkeys(names, 1), "lora.ranks": 0})
    for part in ("weak", "long", "lora"):
        _named_shape(config[part])
    for spec in config.optimizers.names:
        parse_optimizer("optimizers.names", spec)
    samples = config.long.prompts * config.long.group_size
    for devices in config.long.devices:
        if devices > 1 and samples % devices == 0:
            raise ValueError(
                f"long.devices: expected no divisor of the {samples} samples, over which these "
                f"would be spread instead of their tokens, got {devices}"
            )


def weak_cases(config: ConfigDict) -> dict[str, Case]:
    """The same work for each device, by layout and number of devices."""
    weak, cases = config.weak, {}
    shape = _named_shape(weak)
    for model in weak.model:
        for fully_sharded in (False, True):
            for devices in weak.devices:
                data = devices // model
                if devices % model or (fully_sharded and shape.hidden % data):
                    continue  # The hidden width is what is cut over `data`.
                layout = " ".join([f"model={model}", *(["fully sharded"] if fully_sharded else [])])
                cases[f"{layout}, {devices} devices"] = _case(
                    config, weak, shape, data, model, fully_sharded
                )
    return cases


def sampling_cases(config: ConfigDict) -> dict[str, Case]:
    """The sampling before each update of `weak_cases`."""
    return {
        f"sampling, {name}": case._replace(program="sampling")
        for name, case in weak_cases(config).items()
    }


def large_cases(config: ConfigDict) -> dict[str, Case]:
    """Large models, fully sharded, with bfloat16 products and rematerialisation."""
    large, cases = config.large, {}
    for name, entry in large.models.items():
        shape = TransformerConfig(
            **entry.shape,
            context_length=large.prompt_length + large.new_tokens,
            dtype="bfloat16",
            remat=True,
        )
        cases[f"{name}, {entry.data} x {entry.model}"] = _case(
            config, large, shape, entry.data, entry.model, True
        )
    return cases


def long_cases(config: ConfigDict) -> dict[str, Case]:
    """The same long samples on ever more devices, which share their tokens."""
    long, cases = config.long, {}
    for devices in long.devices:
        case = _case(config, long, _named_shape(long), devices, 1, False)
        cases[f"tokens over {devices} devices"] = case._replace(cuts_tokens=True)
    return cases


def optimizer_cases(config: ConfigDict) -> dict[str, Case]:
    """One model by optimizer and devices; on several it is fully sharded."""
    part, cases = config.optimizers, {}
    length = part.prompt_length + part.new_tokens
    shape = TransformerConfig(**part.shape, context_length=length)
    for devices in part.devices:
        for spec in part.names:
            case = _case(config, part, shape, devices, 1, devices > 1)
            cases[f"{spec}, {devices} devices"] = case._replace(rl={**case.rl, "optimizer": spec})
    return cases


def lora_cases(config: ConfigDict) -> dict[str, Case]:
    """One model on one device by the rank of its adapters, one prompt in memory at a time."""
    lora, cases = config.lora, {}
    fields = dict(lora.shape)
    size, length = fields.pop("size"), lora.prompt_length + lora.new_tokens
    for rank in lora.ranks:
        # What is trained is float32 in any case.
        frozen: dict[str, Any] = {"param_dtype": "bfloat16"} if rank else {}
        shape = make_config(
            size, context_length=length, dtype="bfloat16", remat=True, **frozen, **fields
        )
        case = _case(config, lora, shape, 1, 1, False)._replace(lora_rank=rank)
        case.rl["micro_batches"] = lora.prompts
        cases[f"LoRA of rank {rank}" if rank else "all parameters"] = case
    return cases


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table; all of one device."""
    compiled = {
        "compiled GFLOP": found["flops"] / 1e9,
        "compiled traffic, MB": found["bytes"] / 1e6,
        "compiled arguments, GB": found["arguments"] / 1e9,
        "compiled temporaries, GB": found["temporaries"] / 1e9,
        "collectives": sum(found["collectives"].values()),
    }
    if case.program == "sampling" or case.cuts_tokens:
        return compiled  # The formulas are those of an update of whole samples.
    parameters = lm_scaling.parameter_count(TransformerConfig(**case.shape))
    return {
        **compiled,
        "state, GB": lm_scaling.state_bytes(case) / 1e9,
        "compiled arguments, bytes for a parameter": found["arguments"] / parameters,
        "TFLOP": lm_scaling.flops_of_device(case) / 1e12,
        "sent, GB": sum(lm_scaling.communicated_bytes(case).values()) / 1e9,
    }


def _named_shape(part: ConfigDict) -> TransformerConfig:
    fields = dict(part.shape)
    length = part.prompt_length + part.new_tokens
    return make_config(fields.pop("size"), context_length=length, **fields)


def _case(
    config: ConfigDict,
    work: ConfigDict,
    shape: TransformerConfig,
    data: int,
    model: int,
    fully_sharded: bool,
) -> Case:
    rl = runs.load_config(config.rl).rl.to_dict() | {"minibatches": 1, "micro_batches": 1}
    return Case(
        {name: getattr(shape, name) for name in shape.__dataclass_fields__},
        data,
        model,
        fully_sharded,
        work.prompts,
        work.group_size,
        work.prompt_length,
        work.new_tokens,
        rl,
    )


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/lm_scaling.py")
