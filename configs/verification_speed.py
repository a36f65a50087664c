"""How fast completions are verified; see experiments/verification_speed.py.

    python -m experiments.verification_speed

Variants: default and quick, which only shows that everything runs.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)
    config = ConfigDict()
    config.workers = 2
    config.problems = 16
    config.group_size = 32
    config.seconds = 1e-3  # What a call of `compute` and `wait` takes.
    # Arithmetic for that long, sleep for that long, a program of 8 lines with 48 tests.
    config.verifiers = ("compute", "wait", "execute")
    config.repeats = 7  # Timed rounds, each with every verifier; medians are reported.
    if variant == "quick":
        config.problems, config.group_size, config.repeats = 2, 4, 1
    return config
