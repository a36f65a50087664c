"""The summary: what counts as measured, and how often either one is ahead."""

import math

import numpy as np

from maxpo.studies.centering import study


def cell(predicted, measured, *, error=0.01, optimizer="sgd", groups=1, difference=0.0):
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
        "difference_sem": 1.0,
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
