"""Gradient variance study: which advantages are unbiased, and which has the least variance where.

    python -m experiments.gradient_variance --config=configs/gradient_variance.py[:VARIANT]

Variants:

    default   The whole grid: 735 cells in about 4 minutes on 2 CPU cores.
    quick     The same questions on a few points, in seconds; errors are large.

Expected of the default: every unbiased estimator has ratio and cosine 1, maxpo has less variance
than pkpo_loo_minus_one on 100 arms and more on 2 arms and on PKPO's one-dimensional toy problem.
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
    config.estimators = (
        "reinforce",
        "rloo",
        "pkpo",
        "pkpo_loo",
        "pkpo_loo_minus_one",
        "maxpo",
    )
    config.bandits = (
        256  # Independent repetitions of each cell; errors are standard errors of them.
    )
    config.batches = 1024  # Groups drawn in each repetition.

    # The point from which each sweep leaves along one axis. Every cell is measured at k = 1, 2, 4,
    # .. and N - 1; `k` is the one that the figure shows.
    config.base = ConfigDict()
    config.base.num_arms = 100
    config.base.law = "gaussian"  # Or bernoulli, pareto.
    config.base.law_parameter = 1.0  # Standard deviation, success rate or tail exponent.
    config.base.arms = (
        "quantiles"  # Quantiles of the law, the same for all; or "drawn" for each repetition.
    )
    config.base.logit_noise = 0.0  # Standard deviation of random logits: peaked on any arm.
    config.base.logit_tilt = 0.0  # Logits per unit of reward: peaked on the good arms.
    config.base.group_size = 16
    config.base.k = 4

    config.sweep = ConfigDict()
    config.sweep.num_arms = (4, 10, 30, 100, 300, 1000)
    config.sweep.success_rate = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
    config.sweep.tail_exponent = (1.5, 2.0, 3.0, 5.0)
    config.sweep.logit_noise = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
    config.sweep.logit_tilt = (0.0, 0.5, 1.0, 2.0, 4.0)
    config.sweep.group_size = (4, 8, 16, 32, 64)

    # Half of the arms are right; the policy is uniform over these and over the others.
    config.map = ConfigDict()
    config.map.num_arms = (2, 1000)
    config.map.success_rate = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
    config.map.group_size = 16

    # Single points by name, with the fields in which they differ from `base`.
    config.points = ConfigDict(
        {
            "gaussian_100_arms_n8": {"arms": "drawn", "group_size": 8, "k": 2},
            "gaussian_100_arms_n16": {"arms": "drawn"},
            "gaussian_1000_arms_n8_tilt2": {
                "arms": "drawn",
                "num_arms": 1000,
                "logit_tilt": 2.0,
                "group_size": 8,
                "k": 2,
            },
            "gaussian_10_arms_n16": {"arms": "drawn", "num_arms": 10, "k": 8},
            "right_30_of_100_n16": {"law": "bernoulli", "law_parameter": 0.3},
            "right_2_of_100_n16": {"law": "bernoulli", "law_parameter": 0.02},
        }
    )

    # PKPO's figures 1 and 4: x ~ N(theta, 0.1), reward x^2 on [0, 1].
    config.toy = ConfigDict()
    config.toy.estimates = 10_000
    config.toy.thetas = tuple(round(0.05 * i, 2) for i in range(27))
    config.toy.ks = (1, 2, 4, 8)
    config.toy.curve_group_size = 16
    config.toy.theta = 1.0
    config.toy.k = 4
    config.toy.group_sizes = (5, 6, 8, 12, 16, 24, 32, 64)

    # Expected gradients by enumerating all 3^N groups of small policies.
    config.unbiasedness = ConfigDict({"group_size": 6, "ks": (2, 3, 4, 5, 6)})

    if variant == "quick":
        config.bandits = 16
        config.batches = 64
        config.base.num_arms = 30
        config.base.group_size = 8
        config.sweep.num_arms = (30,)
        config.sweep.success_rate = (0.1, 0.5)
        config.sweep.tail_exponent = (2.0,)
        config.sweep.logit_noise = (0.0, 2.0)
        config.sweep.logit_tilt = (0.0, 1.0)
        config.sweep.group_size = (8,)
        config.map.num_arms = (2, 30)
        config.map.success_rate = (0.1, 0.5, 0.9)
        config.map.group_size = 8
        config.points = ConfigDict({"right_9_of_30_n8": {"law": "bernoulli", "law_parameter": 0.3}})
        config.toy.estimates = 500
        config.toy.thetas = (0.4, 0.8, 1.0, 1.2)
        config.toy.ks = (1, 4)
        config.toy.curve_group_size = 8
        config.toy.group_sizes = (5,)
        config.unbiasedness = ConfigDict({"group_size": 4, "ks": (2, 4)})
    return config
