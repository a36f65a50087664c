"""The unbiasedness table: exact statements, each against an enumeration of its own."""

import itertools

import numpy as np
import pytest

from maxpo import estimators
from maxpo.studies.variance import unbiasedness

N, KS = 4, (2, 3, 4)
UNBIASED = (
    *("pkpo", "pkpo_loo", "pkpo_loo_minus_one", "maxpo", "reweighted_rloo"),
    "l_statistic, best of k",
)


@pytest.fixture(scope="module")
def rows():
    return {(row["estimator"], row["k"]): row for row in unbiasedness.table(N, KS)}


def cells(rows, name, k):
    row = rows[name, k]
    return [
        (row[f"{c} ratio"], row[f"{c} cosine"]) for c in unbiasedness.CASES if f"{c} ratio" in row
    ]


def objective_by_enumeration(case, k):
    """grad of sum over all groups of k of prod p times max r, by the product rule."""
    gradients = []
    for logits, rewards in zip(*case, strict=True):
        p = np.exp(logits) / np.exp(logits).sum()
        gradient = np.zeros(len(p))
        for group in itertools.product(range(len(p)), repeat=k):
            scores = np.eye(len(p))[list(group)].sum(axis=0) - k * p
            gradient += np.prod(p[list(group)]) * max(rewards[list(group)]) * scores
        gradients.append(gradient / len(case.logits))
    return np.array(gradients)


@pytest.mark.parametrize("case", unbiasedness.CASES.values(), ids=list(unbiasedness.CASES))
@pytest.mark.parametrize("k", [1, 3])
def test_objective_gradient_equals_enumeration(case, k):
    np.testing.assert_allclose(
        unbiasedness.objective_gradient(case, k), objective_by_enumeration(case, k), atol=1e-14
    )


def test_every_estimator_is_there(rows):
    named = {name.split(",")[0] for name, _ in rows}
    assert named == {*estimators.names()} - {"blended"}  # tests/test_blended.py enumerates it.
    assert ("pkpo", 4) in rows
    assert ("maxpo", 4) not in rows  # Leaves a sample out.


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators(rows, name):
    compared = [pair for k in KS if (name, k) in rows for pair in cells(rows, name, k)]
    assert len(compared) >= 4
    np.testing.assert_allclose(compared, 1, atol=1e-12)


def test_mean_estimators(rows):
    for name, ratio in (("reinforce", 1), ("rloo", 1), ("dr_grpo", 1 - 1 / N)):
        np.testing.assert_allclose(cells(rows, name, 1), [(ratio, 1)] * 2, atol=1e-12)


@pytest.mark.parametrize("name", ["canonical", "pkpo, mean-centered"])
def test_mean_centering_pkpo_shrinks_the_gradient_and_ends_at_zero(rows, name):
    for k in (2, 3):
        np.testing.assert_allclose(cells(rows, name, k), [(1 - k / N, 1)] * 2, atol=1e-12)
    assert cells(rows, name, N) == [(0.0, None)] * 2


@pytest.mark.parametrize("k", KS)
def test_recentering_the_expected_improvement_is_biased(rows, k):
    """It is (1 - k/N) grad J_k + (k/N) grad J_{k-1}: never that of J_k in norm and direction."""
    for case, (ratio, cosine) in zip(
        unbiasedness.CASES.values(),
        cells(rows, "pkpo_loo_minus_one, mean-centered", k),
        strict=True,
    ):
        target, before = (objective_by_enumeration(case, j) for j in (k, k - 1))
        mixture = (1 - k / N) * target + k / N * before
        np.testing.assert_allclose(
            (ratio, cosine), unbiasedness.compare(mixture, target), atol=1e-12
        )
        assert ratio < 0.98
        assert cosine < 0.9999


def test_standardising_turns_the_gradient(rows):
    for name in ("pkpo_loo_minus_one, standardized", "maxpo, standardized"):
        assert min(cosine for _, cosine in cells(rows, name, 2)) < 0.95
    assert cells(rows, "grpo", 1)[0][1] < 0.97


def test_estimators_for_binary_rewards_skip_graded_ones(rows):
    assert len(cells(rows, "max_rl", 1)) == len(cells(rows, "pass_at_k_training", 2)) == 1


def test_compare():
    one, turned = np.array([[1.0, 0.0]]), np.array([[0.0, 3.0]])
    assert unbiasedness.compare(2 * one, one) == (2.0, 1.0)
    assert unbiasedness.compare(turned, one) == (3.0, 0.0)
    assert unbiasedness.compare(0 * one, one) == (0.0, None)
