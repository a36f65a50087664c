"""The summary: what counts as measured, and how often either one is ahead."""

import math

import jax
import numpy as np

from maxpo.runs import load_config
from maxpo.studies.centering import cells, figures, study


def cell(
    predicted,
    measured,
    *,
    error=0.01,
    optimizer="sgd",
    groups=1,
    difference=0.0,
    difference_error=1.0,
):
    return {
        "section": "cell",
        "optimizer": optimizer,
        "groups_per_update": groups,
        "predicted_ratio": predicted,
        "predicted_ratio_sem": 0.001,
        "samples_ratio": measured,
        "samples_ratio_sem": error,
        "variance_ratio": predicted,
        "difference": difference,
        "difference_sem": difference_error,
    }


def test_what_never_reached_its_target_is_left_out():
    rows = [cell(x, x, optimizer="adam") for x in (0.5, 0.7, 0.9, 1.0)]
    rows += [cell(0.5, math.nan), cell(0.5, 0.0), cell(0.5, 0.5, error=math.nan)]
    found = study.predictions(rows)
    assert found["cells"] == 4
    assert abs(found["slope"] - 1) < 1e-6
    assert found["rank_correlation"] == 1
    assert found["adam"]["cells"] == 4
    assert "sgd" not in found


def test_a_panel_says_how_well_the_points_that_it_shows_are_ordered():
    rows = [cell(x, x) for x in (0.5, 0.6, 0.7)]
    rows += [cell(x, 1.4 - x, optimizer="momentum") for x in (0.51, 0.61, 0.81)]
    rows += [cell(0.5, 0.4, error=math.nan), cell(0.5, 0.6, optimizer="adam")]
    panels = figures.prediction(rows).axes
    shown = [
        [x for drawn in panel.containers for x in drawn.lines[0].get_xdata()] for panel in panels
    ]
    assert shown == [[0.5, 0.6, 0.7, 0.51, 0.61, 0.81], [0.5]]
    # Ranks 1, 3, 5, 2, 4, 6 and 1, 3, 4, 6, 5, 2: 1 - 6 * 34 / (6 * 35).
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles == ["sgd or momentum: rank correlation 0.03", "adam"]
    assert study.predictions(rows)["sgd"]["rank_correlation"] == 1


def test_two_cells_have_no_fit():
    found = study.predictions([cell(0.5, 0.6), cell(0.9, 0.8)])
    assert np.isnan(found["slope"])
    assert found["cells"] == 2


def test_counts_are_by_three_standard_errors():
    rows = [
        cell(0.5, 1.0, difference=4.0),
        cell(0.5, 1.0, difference=-4.0),
        cell(0.5, 1.0, difference=2.0),
        cell(0.9, 1.0, difference=4.0),
        cell(0.5, 1.0, difference=4.0, groups=16),
    ]
    counts = study.summarize(rows)["counts"]
    assert counts["all"] == {"cells": 5, "above": 3, "below": 1}
    assert counts["predicted"] == {"cells": 3, "above": 1, "below": 1}


def test_a_difference_without_an_error_is_nobodys_lead():
    rows = [cell(0.5, math.nan, difference=0.0, difference_error=0.0)]
    counts = study.summarize(rows)["counts"]
    assert counts["all"] == counts["predicted"] == {"cells": 1, "above": 0, "below": 0}


def test_rates_at_which_nothing_is_learned_have_a_summary():
    """Every arm is right, or none ever is."""
    config = load_config("configs/centering.py:quick")
    config.update({"seeds": 4, "groups": 16, "evaluations": 2, "probes": 2, "probe_groups": 8})
    config.estimators = ("pkpo_loo_minus_one", "maxpo")
    config.test_contexts = 4
    config.step_sizes.sgd, config.step_sizes.adam = (1.0,), (0.1,)
    config.base.update({"num_arms": 4, "num_features": 2, "hidden_states": 1, "group_size": 4})
    config.base.update({"k": 2, "success_rate": 1e-9})
    config.grid, config.points = {}, ({"success_rate": 0.9},)
    config.frozen.update({"seeds": 1, "groups": 8, "updates": 10, "shown": 4})
    cells.check_config(config)
    rows = [row for job in study.make_jobs(config) for row in job(jax.random.key(0))]
    summary = study.summarize(rows)
    never, always = summary["cells"]
    assert (never["difference"], never["difference_sem"]) == (0, 0)
    assert always["start_variance_ratio_exact"] is None
    assert summary["counts"]["all"] == {"cells": 2, "above": 0, "below": 0}
    (adam,) = summary["adam"]
    assert np.isnan([adam["samples_ratio_predicted"], adam["samples_ratio_measured"]]).all()
