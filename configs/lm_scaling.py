"""What a step takes on meshes of up to 256 devices; see experiments/lm_scaling.py.

    python -m experiments.lm_scaling --config=configs/lm_scaling.py[:VARIANT]

Variants: default, and quick, which only shows that everything runs. Everything is compiled for
simulated devices of the CPU; no accelerator and little memory is needed.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["QWEN3", "VARIANTS", "get_config"]

VARIANTS = ("default", "quick")

QWEN3 = {"head_dim": 128, "kv_heads": 8, "qk_norm": True, "vocab_size": 151_936}


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.rl = "configs/lm.py"  # Whose update it is.
    # The same work for each device on ever more of them: the update, and the sampling before it.
    config.weak = ConfigDict()
    config.weak.devices = (1, 4, 16, 64, 256)
    config.weak.model = (1, 2)
    config.weak.prompts = 4  # For each `data` device, ...
    config.weak.group_size = 4  # ... and samples of each.
    config.weak.prompt_length = 16
    config.weak.new_tokens = 32
    config.weak.shape = ConfigDict({"size": "tiny", "vocab_size": 128})
    # Large models: name -> shape, mesh.
    config.large = ConfigDict()
    config.large.prompts = 1
    config.large.group_size = 16
    config.large.prompt_length = 512
    config.large.new_tokens = 1024
    config.large.models = ConfigDict()
    config.large.models["600M"] = ConfigDict(
        {
            "shape": {"hidden": 1024, "layers": 28, "heads": 16, "mlp": 3072, **QWEN3},
            "data": 8,
            "model": 1,
        }
    )
    config.large.models["8B"] = ConfigDict(
        {
            "shape": {
                "hidden": 4096,
                "layers": 36,
                "heads": 32,
                "mlp": 12288,
                **QWEN3,
                "tied_embeddings": False,
            },
            "data": 64,
            "model": 1,
        }
    )
    config.large.models["70B"] = ConfigDict(
        {
            "shape": {
                "hidden": 8192,
                "layers": 80,
                "heads": 64,
                "mlp": 28672,
                **QWEN3,
                "tied_embeddings": False,
                "qk_norm": False,
                "vocab_size": 128_256,
            },
            "data": 32,
            "model": 8,
        }
    )
    # A model on one device, trained by adapters and as a whole.
    config.lora = ConfigDict()
    config.lora.ranks = (32, 0)  # 0: no adapters.
    config.lora.shape = ConfigDict({"size": "1b", "vocab_size": 128_256})
    config.lora.prompts = 8
    config.lora.group_size = 16
    config.lora.prompt_length = 256
    config.lora.new_tokens = 512
    # The update of a few long samples, whose tokens are spread over ever more devices.
    config.long = ConfigDict()
    config.long.devices = (1, 2, 4, 8, 16)
    config.long.prompts = 1
    config.long.group_size = 3
    config.long.prompt_length = 16
    config.long.new_tokens = 8192
    config.long.shape = ConfigDict({"size": "tiny", "vocab_size": 128, "remat": True})
    # Weights and moments of a model of 0.6B parameters, by optimizer and devices, fully sharded.
    config.optimizers = ConfigDict()
    config.optimizers.names = (
        "adamw",
        "adamw:moments=bfloat16",
        "lion",
        "lion:moments=bfloat16",
        "muon",
        "muon:moments=bfloat16",
        "adafactor",
    )
    config.optimizers.devices = (1, 8)
    config.optimizers.prompts = 1
    config.optimizers.group_size = 4
    config.optimizers.prompt_length = 8
    config.optimizers.new_tokens = 8
    config.optimizers.shape = config.large.models["600M"].shape.copy_and_resolve_references()
    if variant == "quick":
        config.weak.update(devices=(1, 8), model=(1, 2))
        config.large.models = ConfigDict()
        config.long.devices = ()
        config.optimizers.names = ()
        config.lora.shape.size = "nano"
    return config
