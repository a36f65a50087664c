"""How fast a language model samples and learns; see experiments/lm_speed.py.

    python -m experiments.lm_speed --config=configs/lm_speed.py[:VARIANT]

Variants:

    default  A small Qwen3 against transformers on the CPU, with the same weights. Needs
             `pip install 'maxpo[hf]'`, or --config.huggingface=False to time our side alone.
    gpu      0.5B parameters in bfloat16, 512 new tokens: decoding against the memory's bandwidth,
             updates against the peak of matrix products. For a device whose peaks are not known,
             give --config.peak.flops and --config.peak.bandwidth.
    quick    Our side alone, shrunk: only shows that everything runs.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "gpu", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    config.repeats = 7  # Timed rounds, each with every call; medians are reported.
    # Parts of an update on both sides, a divisor of the prompts: what a part computes stays in a
    # CPU's cache.
    config.micro_batches = 16
    config.prompts = 16
    config.group_size = 16
    config.prompt_length = 32
    config.new_tokens = 64
    config.model = ConfigDict()  # A size with any other field of TransformerConfig.
    config.model.size = "tiny"
    config.model.vocab_size = 128
    config.model.qk_norm = True
    config.model.dtype = "float32"
    config.model.param_dtype = "float32"
    config.model.remat = True
    config.huggingface = True  # Whether transformers is timed, too.
    config.huggingface_caches = ("dynamic", "static")  # Its faster one is compared with.
    # Peaks of the device: operations and bytes per second. 0: as the vendor says, if known.
    config.peak = ConfigDict({"flops": 0.0, "bandwidth": 0.0})
    # The update whose memory the compiler is asked for: batch 8 of 512 tokens.
    config.long_vocabulary = ConfigDict()
    config.long_vocabulary.prompts = 1
    config.long_vocabulary.group_size = 8
    config.long_vocabulary.prompt_length = 32
    config.long_vocabulary.new_tokens = 480
    config.long_vocabulary.model = ConfigDict()
    config.long_vocabulary.model.size = "tiny"
    config.long_vocabulary.model.hidden = 256
    config.long_vocabulary.model.vocab_size = 150_000
    if variant == "gpu":
        config.huggingface = False
        config.micro_batches = 1
        config.prompt_length = 128
        config.new_tokens = 512
        config.model.size = "0.5b"
        config.model.vocab_size = 151_936
        config.model.qk_norm = False
        config.model.dtype = "bfloat16"
    elif variant == "quick":
        config.huggingface = False
        config.repeats = 2
        config.prompts, config.group_size = 2, 4
        config.micro_batches = 2
        config.prompt_length, config.new_tokens = 4, 9
        config.model.size = "nano"
        config.model.layers = 1
        config.long_vocabulary.model.vocab_size = 5_000
        config.long_vocabulary.model.layers = 1
    return config
