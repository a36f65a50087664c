"""How fast a whole step is, beside TRL's and Tunix's; see experiments/step_speed.py.

    python -m experiments.step_speed --config=configs/step_speed.py[:VARIANT]

Variants:

    default  A small Qwen3, 256 samples of 64 tokens. Needs `pip install 'maxpo[lm]'`, and
             `'maxpo[trl,tunix]'` for the others.
    smollm2  The shape of SmolLM2-135M with 8 samples of 32 tokens. All three models and their
             optimizers are in memory at a time.
    quick    This library alone, shrunk: only shows that everything runs.
"""

from ml_collections import ConfigDict, config_dict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "smollm2", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    config.repeats = 5  # Timed rounds, each with a step of every trainer; medians are reported.
    # Whether these are timed, too. None: if they are installed.
    config.trl = config_dict.placeholder(bool)
    config.tunix = config_dict.placeholder(bool)
    config.trl_cache = "dynamic"  # Of transformers' sampling; or static.
    # Whether this library computes layers again in the backward pass: on a CPU that saves more
    # traffic to memory than it costs.
    config.remat = True
    # Parts of each trainer's update, divisors of the prompts: what a part computes stays in a CPU's
    # cache.
    config.micro_batches = ConfigDict({"maxpo": 16, "trl": 16, "tunix": 16})
    config.prompts = 16
    config.group_size = 16
    config.prompt_length = 32
    config.new_tokens = 64
    config.model = ConfigDict()  # Fields of TransformerConfig; all have Qwen3's norms of heads.
    config.model.hidden = 128
    config.model.layers = 4
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.mlp = 512
    config.model.vocab_size = 128
    # Rounds in which a training run is started without and with compiled programs, and restarted
    # after a kill; 0: none.
    config.starts = 1
    if variant == "smollm2":
        config.repeats = 3
        config.prompts, config.group_size = 2, 4
        config.micro_batches.update(maxpo=1, trl=1, tunix=1)
        config.new_tokens = 32
        config.model.update(hidden=576, layers=30, heads=9, kv_heads=3, mlp=1536)
        config.model.vocab_size = 49_152
        config.starts = 0
    elif variant == "quick":
        config.trl = config.tunix = False
        config.repeats = 2
        config.prompts, config.group_size = 2, 4
        config.micro_batches.update(maxpo=2, trl=2, tunix=2)
        config.prompt_length, config.new_tokens = 4, 6
        config.model.update(hidden=16, layers=1, heads=2, kv_heads=1, mlp=24, vocab_size=32)
        config.starts = 0
    return config
