"""Centered and other advantages in language-model training; see experiments/lm_centering.py.

    python -m experiments.lm_centering --config=configs/lm_centering.py[:VARIANT]

Variants: default, and quick, which only shows that everything runs.
"""

from ml_collections import ConfigDict

from configs import lm
from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")

# What is taken of configs/lm.py.
_OPTIMIZER = ("optimizer", "warmup_steps", "max_gradient_norm", "b2", "weight_decay")
_SFT = ("learning_rate", "final_rate", *_OPTIMIZER)
_RL = ("temperature", *_OPTIMIZER)


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    trainer = lm.get_config()
    config = ConfigDict()
    config.seed = 0
    # Each has a start, prompts and samples of its own, the same for all methods. The learning rate
    # is chosen on half of them and reported on the other.
    config.seeds = 32
    config.methods = ("maxpo:k=2", "pkpo_loo:k=2", "pkpo_loo_minus_one:k=2", "rloo")
    config.learning_rates = (5e-5, 1e-4, 2e-4, 4e-4)
    # Updates on random answers before the policy gradient, each number a start of its own. After
    # few, some samples hold tokens that are no digits: unlikely ones, with large gradients, and
    # always wrong. After many, none does.
    config.fine_tuning = (100, 1500)
    config.evaluate_every = 100  # Updates.
    config.samples = 32  # Of each held-out puzzle.
    config.eval_ks = (1, 2, 4, 8)
    config.eval_k = 2  # By which learning rates are chosen and methods compared.
    # Drawn by each seed at each start, with two groups each, for the variance of gradients.
    config.variance_prompts = 64

    config.puzzle = ConfigDict()
    config.puzzle.digits = 4
    config.puzzle.least = 14  # The least of the sums, ...
    config.puzzle.most = 30  # ... and the largest.
    config.puzzle.held_out = 64

    # Fields of TransformerConfig.
    config.model = ConfigDict({"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 64})
    config.sft = ConfigDict({name: trainer.sft[name] for name in _SFT})
    config.sft.batch_size = 64
    config.rl = ConfigDict({name: trainer.rl[name] for name in _RL})
    # Gradients are not clipped: with one group in each update most of them would be, to one length,
    # and the estimators would no longer be unbiased.
    config.rl.update(steps=800, prompts=1, group_size=8, max_gradient_norm=1000.0)
    if variant == "quick":
        config.seeds = 4
        config.methods = ("maxpo:k=2", "pkpo_loo_minus_one:k=2")
        config.learning_rates = (1e-4, 3e-4)
        config.fine_tuning = (50,)
        config.evaluate_every = 20
        config.variance_prompts = 8
        config.rl.steps = 60
    return config
