"""Cells of the config: the grid, further points, and mistakes that are named before any work."""

import pytest

from maxpo.runs import load_config
from maxpo.studies.centering import cells


def config():
    return load_config("configs/centering.py")


def test_grid_and_points():
    made = cells.make_cells(config())
    assert len(made) == len(set(made)) == 79
    assert made[0].optimizer == "sgd"
    assert {cell.group_size for cell in made} == {8, 16}
    # A point that the grid has is done once.
    twice = config()
    twice.points = ({"optimizer": "adam"},)
    assert len(cells.make_cells(twice)) == 72


def test_steps_grow_with_groups_as_noise_allows():
    at = {cell: cells.step_sizes(config(), cell) for cell in cells.make_cells(config())}
    base = next(iter(at))
    for optimizer, power in (("sgd", 1), ("adam", 0.5)):
        one = at[base._replace(optimizer=optimizer)]
        many = at[base._replace(optimizer=optimizer, groups_per_update=16)]
        assert many == pytest.approx([size * 16**power for size in one])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": ({"k": 16},)}, r"points\[0\]: k: expected 1 <= k <= group_size - 1 = 15"),
        ({"points": ({"law": "cauchy"},)}, r"points\[0\]: law: expected binary or gaussian"),
        ({"points": ({"arms": 3},)}, r"points\[0\]: expected fields of base .*; got .*arms"),
        ({"grid.optimizer": ("lion",)}, "grid: optimizer: expected one of sgd, momentum, adam"),
        ({"grid.groups_per_update": (3,)}, "expected updates that 32 evaluations divide"),
        ({"base.b2": 1.0}, "b2: expected between 0 and 1, got 1.0"),
        ({"base.num_arms": 1}, "num_arms: expected at least 2, got 1"),
        ({"estimators": ("maxpo", "rloo")}, "expected pkpo_loo_minus_one and maxpo among them"),
        ({"estimators": ("pkpo_loo_minus_one", "maxpo", "blended")}, "need only a k, got blended"),
        ({"estimators": ("pkpo_loo_minus_one", "maxpo", "maxpo")}, "expected different names"),
        ({"target": 1.0}, "target: expected a share between 0 and 1"),
        ({"probe_groups": 12}, "probe_groups: expected a multiple of 8, got 12"),
        ({"frozen.b2": (1.0,)}, "frozen.b2: expected numbers between 0 and 1"),
        ({"frozen.seeds": 33}, "frozen.seeds: expected at most seeds = 32, got 33"),
        (
            {"base.num_arms": 8},
            r"frozen.shown: expected at most base.num_arms \* .* = 128, got 400",
        ),
    ],
)
def test_a_mistake_is_named(fields, message):
    wrong = config()
    wrong.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        cells.check_config(wrong)
