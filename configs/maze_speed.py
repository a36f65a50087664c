"""How fast environments are; see experiments/maze_speed.py.

    python -m experiments.maze_speed

Variants: default, which needs `pip install 'maxpo[maze]'` for the environments of XLand-MiniGrid
(`--config.xminigrid="()"` does without), and quick, which only shows that everything runs.
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
    config.size = 11
    config.radius = 2  # Cells that the window reaches to each side.
    config.horizon = 60
    config.instances = 256  # Mazes, ...
    config.group_size = 16  # ... and episodes of each: 4096 in parallel.
    config.repeats = 15  # Timed calls of each, taken in turns; medians are reported.
    config.xminigrid = ("MiniGrid-FourRooms",)  # In our size and in its own; with () none.
    if variant == "quick":
        config.instances, config.group_size, config.repeats = 4, 2, 1
        config.xminigrid = ("MiniGrid-Empty-5x5",)
    return config
