"""The rule against what it promises, the estimate against sums by hand, and both against bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unbiasedness import BINARY, N, expected_gradient, objective_gradient, same, tuples

from maxpo import estimators
from maxpo.adaptive_k import adaptive_k, init_success_estimate

RULE = {"target": 0.6, "k_max": 4.0}


@pytest.mark.parametrize("target", [0.05, 0.5, 0.99])
def test_pass_at_k_reaches_the_target(target):
    rates = np.linspace(0.01, 0.99, 50)
    k = np.asarray(adaptive_k(rates, target=target, k_max=1e6), np.float64)
    reached = 1 - (1 - rates) ** k
    np.testing.assert_allclose(reached, np.maximum(rates, target), rtol=1e-5)


def test_the_ends_of_the_range():
    rates = [0.0, 1e-30, 0.6, 0.7, 1.0]
    for k_max in (3, 7, 49.0):
        for rule in (adaptive_k, jax.jit(adaptive_k, static_argnames=("target", "k_max"))):
            k = np.asarray(rule(jnp.array(rates), target=0.6, k_max=k_max))
            np.testing.assert_allclose(k, [k_max, k_max, 1, 1, 1], rtol=1e-6)
            assert k.min() >= 1
            assert k.max() <= k_max
    assert np.isnan(adaptive_k(jnp.nan, target=0.5, k_max=8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0}, "target: expected a number between 0 and 1, got 0"),
        ({"target": 1.0}, "target: expected a number between 0 and 1, got 1.0"),
        ({"target": float("nan")}, "target: expected a number between 0 and 1, got nan"),
        ({"k_max": 0.5}, "k_max: expected a finite number of at least 1, got 0.5"),
        ({"k_max": float("inf")}, "k_max: expected a finite number of at least 1, got inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        adaptive_k(0.5, **{**RULE, **change})


def test_counts_of_the_problems_that_were_seen_forget():
    estimate = init_success_estimate(3, prior_rate=0.25, prior_attempts=4)
    np.testing.assert_array_equal(estimate.rate([2, 0]), [0.25, 0.25])

    @jax.jit
    def update(estimate, ids, successes, where):
        return estimate.update(ids, successes, where=where, forgetting=0.5)

    successes = jnp.array([[True, True, False], [True, False, False], [False, True, True]])
    where = jnp.array([[True, True, True], [True, True, False], [True, True, True]])
    # Problem 2 has two groups: it forgets once. Problem 1 has none.
    after = update(estimate, jnp.array([2, 0, 2]), successes, where)
    np.testing.assert_array_equal(after.successes, [1 / 2 + 1, 1, 1 / 2 + 2 + 2])
    np.testing.assert_array_equal(after.attempts, [4 / 2 + 2, 4, 4 / 2 + 3 + 3])
    np.testing.assert_allclose(after.rate(jnp.array([0, 1, 2])), [1.5 / 4, 0.25, 4.5 / 8])
    again = after.update([1], successes[:1], forgetting=1)
    np.testing.assert_array_equal(again.attempts, [4, 7, 8])
    # Without a sample that counts nothing is known that was not known before.
    for one, other in zip(after.update([0], successes[:1], where=~where[:1]), after, strict=True):
        np.testing.assert_array_equal(one, other)


def gradient_at(k):
    """The exact gradient of what maxpo maximizes at a real k; at integers that is max@k.

    An L-statistic of N - 1 samples with alpha_{m+1} = k p_m / (m + 1), p_m the product of
    (j + 1 - k)^+ / (j + 1) over m < j < N - 1.
    """
    factors = [max(j + 1 - k, 0) / (j + 1) for j in range(N - 1)]
    alpha = [k / (m + 1) * np.prod(factors[m + 1 :]) for m in range(N - 1)]
    return objective_gradient(BINARY, N - 1, lambda r: np.dot(alpha, np.sort(r)))


def k_after(rewards):
    """The k of a problem after groups `[B, N]` of which each is all that was ever seen of it."""

    def one(group):
        estimate = init_success_estimate(1).update(jnp.array([0]), group[None] > 0)
        return adaptive_k(estimate.rate(0), **RULE)

    return np.asarray(jax.vmap(one)(jnp.asarray(rewards)), np.float64)


def test_the_exact_gradient_at_integers_is_that_of_max_at_k():
    for k in (1, 2, 4):
        same(gradient_at(k), objective_gradient(BINARY, k))


def test_k_of_past_steps_is_unbiased_and_k_of_the_own_rewards_is_not():
    actions, probabilities, _ = tuples(N)
    with jax.enable_x64(True):
        k = k_after(BINARY[actions])
    values = np.unique(k)
    assert len(values) == N  # Four and five successes have k = 1.
    shares = [probabilities[k == value].sum() for value in values]
    assert max(shares) < 0.7
    targets = [gradient_at(value) for value in values]
    mixture = np.einsum("v,vd->d", shares, targets)

    def with_past_k(rewards):
        """The mean over all past groups, which are independent of the present one."""
        found = [estimators.maxpo(rewards, np.full(len(rewards), value)) for value in values]
        return sum(share * each for share, each in zip(shares, found, strict=True))

    same(expected_gradient(with_past_k, BINARY), mixture)
    for value, target in zip(values, targets, strict=True):
        same(expected_gradient(lambda r, k=value: estimators.maxpo(r, k), BINARY), target)
    own = expected_gradient(lambda rewards: estimators.maxpo(rewards, k), BINARY)
    assert np.linalg.norm(own - mixture) > 0.05 * np.linalg.norm(mixture)
