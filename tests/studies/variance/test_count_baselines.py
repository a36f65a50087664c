"""Closed forms of baselines for 0/1 rewards, against other closed forms and by exact statements."""

import itertools
from functools import partial

import numpy as np
import pytest

from maxpo import estimators
from maxpo.studies.variance.binary_moments import exact_moments
from maxpo.studies.variance.count_baselines import best_weight, certificate, leave_two_out, variance

RATES = (0.01, 0.1, 0.3, 0.5, 0.9)
every_pair = pytest.mark.parametrize(("n", "k"), [(n, k) for n in (4, 8) for k in range(1, n)])
every_rate = pytest.mark.parametrize("rate", RATES)


@every_pair
@every_rate
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, -1.0])
def test_variance_is_the_limit_of_many_arms(n, k, rate, weight):
    """Of the sum over groups, where two samples share an arm once in a million times."""
    trace, _ = exact_moments(
        partial(estimators.blended, k=k, weight=weight),
        group_size=n,
        success_rate=rate,
        right_arms=10**9,
        wrong_arms=10**9,
    )
    baseline = weight * leave_two_out(n, k)
    assert variance(baseline, group_size=n, k=k, success_rate=rate) == pytest.approx(trace, 1e-5)


@every_pair
@every_rate
def test_best_weight_minimises_the_variance(n, k, rate):
    def v(weight):
        return variance(weight * leave_two_out(n, k), group_size=n, k=k, success_rate=rate)

    best = best_weight(group_size=n, k=k, success_rate=rate)
    assert v(best) <= min(v(best - 0.01), v(best + 0.01))
    assert (v(1) < v(0)) == (best > 0.5)


@every_rate
@pytest.mark.parametrize("n", [3, 8, 32])
def test_best_weight_at_the_smallest_and_the_largest_k(n, rate):
    at_one = best_weight(group_size=n, k=1, success_rate=rate)
    assert at_one == pytest.approx((n - 1) * rate / ((n - 1) * rate + 1 - rate), rel=1e-12)
    at_most = best_weight(group_size=n, k=n - 1, success_rate=rate)
    assert at_most == pytest.approx(rate, rel=1e-12)


def test_the_border_goes_from_1_over_n_to_one_half():
    for n in (4, 16):
        for k, border in ((1, 1 / n), (n - 1, 0.5)):
            assert best_weight(group_size=n, k=k, success_rate=border * 0.99) < 0.5
            assert best_weight(group_size=n, k=k, success_rate=border * 1.01) > 0.5


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (4, 3), (8, 4), (16, 15)])
def test_certificate_is_tight_and_above_1(n, k):
    rates = (0.01, 0.05, 0.2, 0.5, 0.7, 0.9)
    bound, attained = certificate(n, k, rates)
    assert 1 < bound <= attained
    assert attained == pytest.approx(bound, rel=1e-4)


def test_no_table_on_a_grid_beats_the_certificate():
    """All tables b(0), b(1), finest where they are small; b(2) has no effect at k = 2."""
    n, k, rates = 3, 2, (0.02, 0.2, 0.8)
    bound, attained = certificate(n, k, rates)
    ends = (np.zeros(n), leave_two_out(n, k))
    better = {p: min(variance(b, group_size=n, k=k, success_rate=p) for b in ends) for p in rates}
    worst = np.inf
    steps = np.linspace(0, 1, 81) ** 2
    for table in itertools.product(steps, repeat=2):
        ratios = (
            variance(np.array([*table, 0]), group_size=n, k=k, success_rate=p) / better[p]
            for p in rates
        )
        worst = min(worst, max(ratios))
    assert bound <= worst
    assert worst == pytest.approx(attained, abs=0.005)


def test_no_certificate_where_a_weight_is_right_for_all():
    bound, attained = certificate(8, 2, (0.01,))
    assert bound == attained < 1
