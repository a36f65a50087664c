"""Tunix's GRPO learner with this library's advantages, on a tiny random Qwen3.

    python -m experiments.tunix_lm --config=configs/tunix_lm.py [--config.FIELD=VALUE]

Needs the extra `tunix`. Takes about a minute on a CPU. The prompt does not tell which letter is
right, so the best policy for one try always says the likeliest letter, and the best one for k
tries spreads over several: `maxpo` must end with a higher max@k than `rloo`, and a lower mean
reward.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["get_config"]


def get_config(variant: str = "default") -> ConfigDict:
    """The config of the only variant."""
    check_variant(variant, ("default",))

    config = ConfigDict()
    config.seed = 0
    config.methods = ("rloo", "maxpo:k=4")  # See maxpo.methods.
    config.eval_k = 4.0  # The k of the reported max@k.
    config.updates = 60
    config.prompts = 8  # For each update.
    config.num_generations = 8  # N, samples for each prompt.
    config.learning_rate = 0.01
    config.odds = (0.4, 0.3, 0.2, 0.1)  # Chances of a, b, c and so on to be right.
    config.report_updates = 20  # The last ones, over which the figures are averaged.

    # For qwen3.ModelConfig.
    config.model = ConfigDict()
    config.model.num_layers = 1
    config.model.embed_dim = 16
    config.model.hidden_dim = 32
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.head_dim = 8
    return config
