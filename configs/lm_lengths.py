"""What completions of uneven lengths cost; see experiments/lm_lengths.py.

    python -m experiments.lm_lengths [--config=configs/lm_lengths.py:VARIANT]

Variants:

    default  A million parameters, 32 completions of at most 2,048 tokens. Half of them end at a
             fifth of that.
    quick    Shrunk: only shows that everything runs.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    config.repeats = 3  # Timed rounds, each with every call; medians are reported.
    config.prompts = 4
    config.group_size = 8
    config.prompt_length = 32
    config.new_tokens = 2048  # T, the longest completion.
    # Lengths median T exp(sigma z) for normal z, those above T truncated.
    config.lengths = ConfigDict({"median": 0.2, "sigma": 0.6})
    # Of an update with padding, whose scores of attention are large; a packed one is a single part.
    config.micro_batches = 4
    config.model = ConfigDict()  # A size with any other field of TransformerConfig.
    config.model.size = "tiny"
    config.model.vocab_size = 128
    if variant == "quick":
        config.repeats = 1
        config.prompts, config.group_size, config.micro_batches = 2, 4, 2
        config.prompt_length, config.new_tokens = 4, 80
        config.model.size = "nano"
        config.model.layers = 1
    return config
