"""How much of the baseline: the best constant weight, and the weight of past updates.

    python -m experiments.baseline_weight --config=configs/baseline_weight.py[:VARIANT]

Variants:

    default   The whole grid, in 80 to 110 seconds on 2 CPU cores.
    quick     A corner of it, in seconds; errors are large.

Expected of the default: the weight of past updates is hardly anywhere above the better one of
weights 0 and 1 by more than its error, and below it in many cells; every certificate is above 1.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)

    config = ConfigDict()
    config.seed = 0
    config.bandits = 192  # Policies in each cell; errors are standard errors over them.
    config.groups = 512  # Drawn from each policy: half to play the rule on, half to judge it by.

    # The grid, all with all; k = 1, 2, 4, .. and N - 1 on the same groups. Arms pay the quantiles
    # of their law: Gaussian, Pareto, or 0/1 with each success rate that is a number of arms.
    config.num_arms = (10, 100, 1000)
    config.tail_exponent = 2.5
    config.success_rates = (0.01, 0.1, 0.3, 0.5, 0.9)
    config.logit_noises = (0.0, 3.0)  # Standard deviation of random logits: uniform and peaked.
    config.group_sizes = (4, 8, 16, 32)

    # The weight of past updates, on a policy that stands still.
    config.rule = ConfigDict()
    config.rule.decay = 0.95
    config.rule.caution = 2.0
    config.rule.prompts = 64  # Groups in an update.
    config.rule.chains = 24
    config.rule.updates = 100  # That count, of each chain.

    config.map_group_size = 16  # N of the figure's closed forms.
    config.certificate = ConfigDict()
    config.certificate.pairs = (
        (4, 1),
        (4, 2),
        (4, 3),
        (8, 1),
        (8, 2),
        (8, 4),
        (8, 7),
        (16, 1),
        (16, 4),
        (16, 8),
        (16, 15),
    )
    config.certificate.success_rates = (
        *(0.01, 0.02, 0.03, 0.05),
        *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )

    if variant == "quick":
        config.bandits, config.groups = 8, 128
        config.num_arms, config.success_rates = (100,), (0.1, 0.5)
        config.logit_noises, config.group_sizes = (0.0,), (8,)
        config.rule.chains, config.rule.updates = 4, 20
        config.certificate.pairs = ((4, 2), (8, 4))
    return config
