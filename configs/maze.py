"""Maze study: five methods, each at its own best learning rate, on mazes they have never seen.

    python -m experiments.maze --config=configs/maze.py[:VARIANT] [--config.FIELD=VALUE]

Variants:

    default    11 x 11 perfect mazes with goals of 0.25, 0.5 and 1, the best one farthest away, seen
               through a window of 5 x 5 cells. A policy without memory cannot know where the best
               goal is, so the mean and the best of K want different things.
    full       The whole maze is seen, through convolutions.
    rooms      Four rooms instead of corridors.
    clipped    The default with the clipped-ratio loss, four steps on each batch.
    xminigrid  FourRooms of XLand-MiniGrid, an environment that we did not write. Needs
               `pip install 'maxpo[maze]'`.
    quick      The default, shrunk to less than a minute.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = ("default", "full", "rooms", "clipped", "xminigrid", "quick")


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)

    config = ConfigDict()
    config.seed = 0
    config.seeds = 8  # Trained at once; errors are standard errors over them.
    # See maxpo.methods. Here a method may also have an entropy bonus, for a nat and step: a number
    # or entropy=sweep. Where it has a learning_rate, that is not swept.
    config.methods = (
        "rloo",
        "grpo",
        "grpo:entropy=sweep",
        "pkpo_loo_minus_one:k=8",
        "maxpo:k=8",
    )
    config.group_size = 16  # N, episodes of each maze and update.
    config.mazes = 16  # Fresh ones in each update.
    config.updates = 300
    config.evaluate_every = 20  # Updates between two points of the curves, each a checkpoint.
    config.loss = "score_function"  # Or clipped_ratio, which allows several epochs.
    config.epochs = 1  # Optimizer steps on each batch.
    config.max_gradient_norm = 1.0
    config.eval_k = 8  # The k of the learning curves, and the criterion of the sweep.

    # For each method the setting with the best max@eval_k on validation mazes.
    config.sweep = ConfigDict()
    config.sweep.learning_rates = (1e-3, 3e-3, 1e-2, 3e-2)  # Adam's.
    config.sweep.entropy_coefficients = (3e-3, 1e-2, 3e-2)  # What entropy=sweep tries.
    config.sweep.seeds = 4  # With 2, a rate under which some seeds collapse was chosen for one.
    config.sweep.updates = 300

    config.evaluation = ConfigDict()
    config.evaluation.mazes = 128  # To validate on, and as many others to report on.
    config.evaluation.samples = 32  # Episodes of each maze at each point of the curves.
    config.evaluation.curve_samples = 256  # And at the end, for max@k up to this k.

    config.policy = ConfigDict({"kind": "mlp", "hidden": (32,)})
    config.task = ConfigDict(
        {
            "name": "maze",
            "size": 11,
            "kind": "perfect",
            "values": (0.25, 0.5, 1.0),
            "horizon": 50,
            "view": "local",
            "radius": 2,
        }
    )

    if variant == "full":
        # A convolution over the maze is a hundred times the work of a window.
        config.task.update(view="full", size=7, horizon=24)
        config.policy = ConfigDict({"kind": "conv", "hidden": (16, 16)})
        config.methods = ("rloo", "grpo", "maxpo:k=8")
        config.seeds, config.mazes, config.updates, config.evaluate_every = 4, 4, 150, 30
        config.sweep.update(learning_rates=(3e-3, 1e-2), updates=150, seeds=2)
        config.evaluation.update(mazes=32, samples=16, curve_samples=64)
    elif variant == "rooms":
        config.task.kind = "rooms"
    elif variant == "clipped":
        config.loss, config.epochs = "clipped_ratio", 4
    elif variant == "xminigrid":
        config.task = ConfigDict(
            {"name": "xminigrid", "environment": "MiniGrid-FourRooms", "horizon": 60}
        )
        # It makes a two hundredth of the steps a second.
        config.methods = ("rloo", "maxpo:k=8")
        config.seeds, config.mazes, config.updates, config.evaluate_every = 4, 4, 100, 50
        config.sweep.update(learning_rates=(3e-3, 1e-2), updates=100, seeds=2)
        config.evaluation.update(mazes=16, samples=16, curve_samples=64)
    elif variant == "quick":
        config.methods = ("rloo", "maxpo:k=8")
        config.seeds = 4
        config.updates = config.sweep.updates = 120
        config.sweep.update(learning_rates=(3e-3, 1e-2), seeds=2)
        config.evaluation.mazes = 64
    return config
