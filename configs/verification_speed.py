"""How fast completions are verified; see experiments/verification_speed.py.

    python -m experiments.verification_speed

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
    config.workers = 2
    config.problems = 16
    config.group_size = 32
    config.seconds = 1e-3  # What a call of all but `execute` takes.
    # Work for that long, the same in a text-only verifier, sleep for that long, and a program of 8
    # lines with 48 tests.
    config.verifiers = ("compute", "read", "wait", "execute")
    config.repeats = 7  # Timed rounds, each with every verifier; medians are reported.
    if variant == "quick":
        config.problems, config.group_size, config.repeats = 2, 4, 1
    return config
