"""Centered and other advantages in language-model training; see experiments/lm_centering.py.

    python -m experiments.lm_centering --config=configs/lm_centering.py[:VARIANT]

Variants: default, and quick, which only shows that everything runs.
"""

from ml_collections import ConfigDict

from configs import lm
from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    # Each has a start, prompts and samples of its own, the same for all methods. The learning rate
    # is chosen on half of them and reported on the other.
    config.seeds = 16
    config.methods = ("maxpo:k=2", "pkpo_loo:k=2", "pkpo_loo_minus_one:k=2", "rloo")
    config.learning_rates = (1e-4, 3e-4, 1e-3)
    config.evaluate_every = 100  # Updates.
    config.samples = 64  # Of each held-out puzzle.
    config.eval_ks = (1, 2, 4, 8)
    config.eval_k = 2  # The k that learning rates are chosen by.

    config.puzzle = ConfigDict()
    config.puzzle.digits = 4
    config.puzzle.least = 10  # The least sum.
    config.puzzle.most = 26
    config.puzzle.held_out = 64

    config.model = ConfigDict({"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 64})

    of_trainer = lm.get_config()
    config.sft = of_trainer.sft
    config.sft.update(steps=300, batch_size=64)
    config.rl = of_trainer.rl
    config.rl.update(steps=1000, prompts=1, group_size=8)
    return config
