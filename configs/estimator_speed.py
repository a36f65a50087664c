"""How long `maxpo` takes; see experiments/estimator_speed.py.

    python -m experiments.estimator_speed

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
    config.k = 8
    config.seed = 0
    config.repeats = 31  # Timed calls of each function, taken in turns; medians are reported.
    config.numpy_repeats = 1  # Repeats of the NumPy reference, which takes seconds.
    config.numpy_limit = 2**16  # Largest number of rewards it is given.
    config.quadratic_limit = 2**28  # Largest groups * N^2 the quadratic form is given.
    # Shapes (groups, N) of training batches, ...
    config.groups = (1024, 1024, 1024, 1024, 256, 16)
    config.group_sizes = (16, 32, 64, 256, 1024, 4096)
    # ... and of growing groups with the same number of rewards.
    config.scaling_rewards = 2**17
    config.scaling_sizes = tuple(2**power for power in range(4, 18))
    if variant == "quick":
        config.repeats = 2
        config.numpy_limit = 2**10
        config.groups, config.group_sizes = (64, 16), (16, 64)
        config.scaling_rewards = 2**10
        config.scaling_sizes = (2**4, 2**10)
    return config
