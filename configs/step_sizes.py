"""Final max@k at every step size; see experiments/step_sizes.py.

    python -m experiments.step_sizes

Variants: default; adaptive, fixed k and adaptive ones where contexts are unevenly hard; and quick,
which only shows that everything runs.
"""

from ml_collections import ConfigDict

from configs import bandit
from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "adaptive", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    # Variants of configs/bandit.py, trained as they stand there but for the fields below.
    config.bandits = ("default", "bernoulli", "heavy_tailed")
    config.step_sizes = tuple(2.0**power for power in range(-2, 8))
    config.common = 4.0  # The step size at which estimators are also compared with each other.
    config.eval_k = 0.0  # The k of the reported J_k; 0: each bandit's own.
    config.seeds = 32  # The best step size is chosen on half of them and reported on the other.
    config.updates = 500
    config.methods = bandit.get_config().methods
    if variant == "adaptive":
        config.bandits = ("uneven",)
        config.step_sizes = tuple(2.0**power for power in range(10))
        config.methods = bandit.get_config("uneven").methods
    elif variant == "quick":
        config.bandits = ("default",)
        config.step_sizes = (1.0, 4.0)
        config.seeds = 4
        config.updates = 10
        config.methods = ("rloo", "maxpo:k=4")
    return config
