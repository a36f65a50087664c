"""Where centering pays in learning; see experiments/centering.py.

    python -m experiments.centering --config=configs/centering.py[:VARIANT]

Variants:

    default   The whole grid and further points.
    quick     Four cells, in a minute; errors are large.
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
    config.seeds = 32  # Step sizes are chosen on half of them and reported on the other.
    config.estimators = ("rloo", "pkpo_loo", "pkpo_loo_minus_one", "maxpo")
    config.groups = 2048  # Drawn in all of training, whatever the number in an update.
    config.evaluations = 32  # Points of a learning curve after the start.
    config.test_contexts = 64  # J_k is exact for these, in every hidden state.
    config.target = 0.9  # Share of the lower gain of two that samples are counted to.
    config.probes = 4  # Policies of each training run at which moments are measured,
    config.probe_groups = 512  # each from as many groups.

    # Adam on policies that stand still, in the cell of `base`.
    config.frozen = ConfigDict()
    config.frozen.b2 = (0.95, 0.99, 0.999)
    config.frozen.seeds = 4
    config.frozen.groups = 4096  # For the moments.
    config.frozen.updates = 8192
    config.frozen.shown = 400  # Coordinates in the figure.

    # Tried for each estimator, at one group in an update. With G groups SGD's are G times as long,
    # Adam's sqrt(G) times; see maxpo.studies.centering.cells.step_sizes.
    config.step_sizes = ConfigDict()
    config.step_sizes.sgd = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    config.step_sizes.momentum = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
    config.step_sizes.adam = (0.01, 0.02, 0.03, 0.045, 0.07, 0.1)

    config.base = ConfigDict()
    config.base.hidden_states = 4
    config.base.num_arms = 64
    config.base.num_features = 16
    config.base.law = "binary"  # Or gaussian.
    config.base.success_rate = 0.3  # Share of right arms, of binary rewards.
    config.base.group_size = 16
    config.base.k = 4
    config.base.groups_per_update = 1
    config.base.optimizer = "sgd"  # Or momentum, adam.
    config.base.b2 = 0.99  # Decay of Adam's second moments.

    config.grid = ConfigDict()  # Every combination is a cell.
    config.grid.optimizer = ("sgd", "adam")
    config.grid.groups_per_update = (1, 4, 16)
    config.grid.success_rate = (0.05, 0.1, 0.3, 0.5)
    config.grid.k = (2, 4, 8)

    # Further cells, each with the fields in which it differs from `base`.
    config.points = (
        {"optimizer": "adam", "b2": 0.95},
        {"optimizer": "adam", "b2": 0.999},
        {"optimizer": "momentum"},
        {"law": "gaussian"},
        {"law": "gaussian", "optimizer": "adam"},
        {"hidden_states": 1, "k": 2, "group_size": 8},
        {"hidden_states": 1, "k": 2, "group_size": 8, "optimizer": "adam"},
    )
    if variant == "quick":
        config.seeds = 8
        config.groups = 1024
        config.evaluations = 16
        config.probe_groups = 256
        config.frozen.update({"b2": (0.99,), "seeds": 2, "groups": 1024, "updates": 2048})
        config.step_sizes.sgd = (4.0, 8.0, 16.0)
        config.step_sizes.adam = (0.03, 0.06, 0.12)
        config.grid.groups_per_update = (1, 16)
        config.grid.success_rate = (0.3,)
        config.grid.k = (2,)
        config.points = ()
    return config
