"""Rates are chosen without the seeds that are reported, and differences are paired."""

import math

import numpy as np
import pytest

from maxpo.studies.lm_centering import comparison

# One evaluation before training and two later, of four seeds: two to choose, two to report.
MAXPO = {
    0.1: np.array([[0.2, 0.2, 0.2, 0.4], [0.3, 0.3, 0.4, 0.6], [0.5, 0.5, 0.6, 0.8]]),
    0.2: np.array([[0.2, 0.2, 0.2, 0.4], [0.3, 0.3, 0.9, 0.9], [0.4, 0.4, 0.9, 0.9]]),
}
OTHER = {0.1: np.array([[0.2, 0.2, 0.2, 0.4], [0.2, 0.2, 0.3, 0.4], [0.3, 0.3, 0.3, 0.6]])}


def test_compare():
    rows = comparison.compare({"maxpo k=2": MAXPO, "rloo": OTHER}, evaluate_every=10)
    maxpo, other = rows["maxpo k=2"], rows["rloo"]
    # The rate 0.2 is better for the seeds that are reported, and not for those that choose.
    assert maxpo["learning_rate"] == 0.1
    assert (maxpo["max_at_k"], maxpo["max_at_k_sem"]) == pytest.approx((0.7, 0.1))
    assert (maxpo["gain"], maxpo["gain_sem"]) == pytest.approx((0.4, 0.0))
    assert maxpo["minus_maxpo"] == maxpo["minus_maxpo_sem"] == 0
    # Differences of -0.3 and -0.2; half of MaxPO's way from 0.3 to 0.7 is 0.5.
    assert (other["minus_maxpo"], other["minus_maxpo_sem"]) == pytest.approx((-0.25, 0.05))
    assert maxpo["updates_to_target"] == pytest.approx(10)
    assert math.isnan(other["updates_to_target"])


def test_curves_are_read_by_start_and_rate():
    values = np.arange(2 * 4 * 3).reshape(2, 4, 3).tolist()
    row = {"fine_tuning": 5, "method": "rloo", "learning_rate": 0.1, "pass_at_k": values}
    found = comparison.curves([row, {**row, "fine_tuning": 6}], place=1)
    assert list(found) == [5, 6]
    assert found[5]["rloo"][0.1].tolist() == [[1, 4, 7, 10], [13, 16, 19, 22]]
