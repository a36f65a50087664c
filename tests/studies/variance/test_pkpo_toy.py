"""PKPO's toy problem: what is drawn equals the closed form, and quadrature over whole groups."""

import math

import jax
import numpy as np
import pytest

from maxpo.studies.variance import pkpo_toy


def grid(theta, cells, spread=6.0):
    """Midpoints in x of equal cells, a cell's edge at 0 and 1 for theta = 1; their probability."""
    edges = np.linspace(theta - spread * pkpo_toy.STD, theta + spread * pkpo_toy.STD, cells + 1)
    cdf = np.array([0.5 * (1 + math.erf((x - theta) / pkpo_toy.STD / 2**0.5)) for x in edges])
    x = (edges[1:] + edges[:-1]) / 2
    return x, np.diff(cdf)


def reward(x):
    return np.where((x >= 0) & (x <= 1), x**2, 0)


def expected_max(theta, k):
    x, odds = grid(theta, 24_000)
    order = np.argsort(reward(x), kind="stable")
    cdf = np.append(0.0, np.cumsum(odds[order]))
    return reward(x)[order] @ np.diff(cdf**k)


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("theta", [0.1, 0.8, 1.0, 1.25])
def test_exact_objective(theta, k):
    value, slope = pkpo_toy.exact_objective(theta, k)
    np.testing.assert_allclose(value, expected_max(theta, k), atol=2e-5)
    difference = (expected_max(theta + 0.01, k) - expected_max(theta - 0.01, k)) / 0.02
    np.testing.assert_allclose(slope, difference, rtol=0.02, atol=0.02)


def test_the_curves_of_figure_1_agree_with_the_closed_form():
    thetas = (0.2, 0.7, 0.95, 1.1)
    scores = []
    for k in (1, 4):
        rows = pkpo_toy.curve(jax.random.key(k), thetas, k, group_size=8, estimates=4000)
        for row in rows:
            for metric in ("objective", "derivative"):
                error = row[f"{metric}_error"]
                assert error < 0.1
                scores.append((row[metric] - row[f"{metric}_exact"]) / error)
    assert np.abs(scores).max() < 4
    assert (
        0.4 < np.sqrt(np.mean(np.square(scores))) < 1.8
    )  # The errors are neither small nor large.


def test_variances_equal_quadrature_over_whole_groups():
    """Two samples, k = 2, s^(loo-1); and three samples, k = 2, MaxPO: every group on a grid."""
    x, odds = grid(1.0, 120)
    r, score = reward(x), (x - 1) / pkpo_toy.STD**2

    pair = np.maximum(r[:, None] - r[None, :], 0) * score[:, None]
    pair = pair + pair.T  # (1/2) sum_i 2 (r_i - r_j)^+ score_i
    weight = np.multiply.outer(odds, odds)
    check(("pkpo_loo_minus_one",), 2, np.sum(weight * pair**2) - np.sum(weight * pair) ** 2)

    # A_i = 2 (q_i - max of the other two), q_i the mean of the two maxima with i.
    m = np.maximum(r[:, None], r[None, :])
    ab, ac, bc = m[:, :, None], m[:, None, :], m[None, :, :]
    triple = (
        ((ab + ac) / 2 - bc) * score[:, None, None]
        + ((ab + bc) / 2 - ac) * score[None, :, None]
        + ((ac + bc) / 2 - ab) * score[None, None, :]
    ) * (2 / 3)
    weight = np.multiply.outer(weight, odds)
    check(("maxpo",), 3, np.sum(weight * triple**2) - np.sum(weight * triple) ** 2)


def check(names, n, expected):
    row = pkpo_toy.variances(jax.random.key(n), 1.0, 2, names=names, group_size=n, estimates=40_000)
    value, error = row["variance"][names[0]], row["variance_error"][names[0]]
    assert error < 0.02 * value
    assert abs(value - expected) < 4 * error + 0.005 * expected  # And that of the grid.


def test_figure_4_has_the_published_order_and_maxpo_second():
    names = ("pkpo", "pkpo_loo", "maxpo", "pkpo_loo_minus_one")
    before = None
    for n in (6, 16):
        row = pkpo_toy.variances(
            jax.random.key(0), 1.0, 4, names=names, group_size=n, estimates=4000
        )
        values = [row["variance"][name] for name in names]
        assert values == sorted(values, reverse=True)
        assert before is None or np.all(np.array(values) < before)
        before = np.array(values)


def test_variance_and_its_error():
    samples = np.random.default_rng(0).normal(scale=3.0, size=(2000, 400))
    estimates = np.array([pkpo_toy.variance(row) for row in samples])
    np.testing.assert_allclose(estimates[:, 0], samples.var(axis=1, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(estimates[:, 1].mean(), estimates[:, 0].std(), rtol=0.06)
