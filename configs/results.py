"""Everything that docs/results.md quotes; see experiments/results.py.

    python -m experiments.results

Variants: default, and quick, which only shows that everything runs.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    # Binaries of experiments/ with their variants, in the order of docs/results.md.
    config.studies = (
        "bandit",
        "bandit:bernoulli",
        "bandit:heavy_tailed",
        "bandit:tabular",
        "bandit:square",
        "bandit:anneal",
        "step_sizes",
        "step_sizes:adaptive",
        "gradient_variance",
        "baseline_weight",
        "centering",
        "maze",
        "maze_speed",
        "lm",
        "lm:graded",
        "lm_centering",
        "lm_speed",
        "step_speed",
        "verification_speed",
        "lm_scaling",
        "lm_lengths",
        "checkpoint_speed",
        "estimator_speed",
    )
    if variant == "quick":
        config.studies = ("bandit:quick", "step_sizes:quick")
    return config
