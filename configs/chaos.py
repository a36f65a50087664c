"""What faults cost programs; see experiments/chaos.py.

    python -m experiments.chaos

Variants: default and quick, which only shows that everything runs.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0  # Of the moments and of what is damaged.
    config.programs = ("bandit", "maze", "lm")
    config.workers = 3  # Programs that run at a time.
    # Faults, spread over the programs.
    config.kills = 100
    config.terms = 20
    config.full_disks = 15
    config.damages = 24
    if variant == "quick":
        config.programs = ("bandit",)
        config.kills, config.terms, config.full_disks, config.damages = 4, 1, 1, 2
    return config
