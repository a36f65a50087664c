"""How fast a checkpoint is read and written; see experiments/checkpoint_speed.py.

    python -m experiments.checkpoint_speed

Variants: default, a checkpoint of 2.0 GB in float32, which takes 3 GB of memory; and quick, which
only shows that everything runs.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.shape = ConfigDict()  # That of Qwen3-0.6B, with 22 of its 28 layers.
    config.shape.update(hidden=1024, layers=22, heads=16, kv_heads=8, head_dim=128, mlp=3072)
    config.shape.update(vocab_size=151_936, context_length=1024, qk_norm=True)
    config.dtypes = ("float32", "bfloat16")  # Of the files; parameters are float32.
    config.devices = 8  # Simulated ones, over which a model is fully sharded.
    config.repeats = 5  # Rounds, each with every reader; medians are reported, and highest peaks.
    if variant == "quick":
        config.shape.update(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128)
        config.shape.vocab_size = 256
        config.devices, config.repeats = 2, 1
    return config
