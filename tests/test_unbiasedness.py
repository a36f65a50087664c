"""Expected gradients, exactly: every batch of a small softmax policy is enumerated in float64.

No sampling, no tolerance to tune: an estimator's expected gradient either is its stated target to
rounding, or the statement is wrong.
"""

import itertools

import jax
import numpy as np
import oracles
import pytest

from maxpo import estimators, losses

LOGITS = np.array([0.3, -0.5, 0.9])
POLICY = np.exp(LOGITS) / np.exp(LOGITS).sum()
GRADED = np.array([0.2, 1.7, -0.4])
BINARY = np.array([0.0, 1.0, 0.0])
N = 5


def tuples(n):
    """All batches of n actions, their probabilities and the sum of their scores by sample."""
    actions = np.array(list(itertools.product(range(len(POLICY)), repeat=n)))
    scores = np.eye(len(POLICY))[actions] - POLICY  # grad log pi of each sample
    return actions, np.prod(POLICY[actions], axis=1), scores


def objective_gradient(arm_rewards, k, value=max):
    """grad E[value of k samples]."""
    actions, probabilities, scores = tuples(k)
    values = np.array([value(r) for r in arm_rewards[actions]])
    return np.einsum("b,b,bnd->d", probabilities, values, scores)


def expected_gradient(estimator, arm_rewards, n=N):
    """E[(1/n) sum_i A_i grad log pi(y_i)]."""
    actions, probabilities, scores = tuples(n)
    with jax.enable_x64(True):
        advantages = np.asarray(estimator(arm_rewards[actions]))
    assert advantages.dtype == np.float64
    return np.einsum("b,bn,bnd->d", probabilities, advantages, scores) / n


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


arms = pytest.mark.parametrize("arm_rewards", [GRADED, BINARY], ids=["graded", "binary"])


@arms
def test_mean_estimators(arm_rewards):
    gradient = objective_gradient(arm_rewards, 1)
    same(expected_gradient(estimators.reinforce, arm_rewards), gradient)
    same(expected_gradient(estimators.rloo, arm_rewards), gradient)
    same(expected_gradient(estimators.dr_grpo, arm_rewards), (1 - 1 / N) * gradient)


@arms
@pytest.mark.parametrize(
    ("name", "k"),
    [
        (name, k)
        for name in (
            *("pkpo", "pkpo_loo", "pkpo_loo_minus_one", "maxpo", "canonical", "reweighted_rloo"),
        )
        for k in range(1, N - oracles.MAX_ESTIMATORS[name][1] + 1)
    ],
)
def test_max_estimators(name, k, arm_rewards):
    scale = 1 - k / N if name == "canonical" else 1
    function = getattr(estimators, name)
    expected = scale * objective_gradient(arm_rewards, k)
    same(expected_gradient(lambda r: function(r, k), arm_rewards), expected)


@arms
def test_k_of_each_group_is_unbiased_unless_its_own_rewards_choose_it(arm_rewards):
    def choose(rewards):
        return np.where(rewards.mean(axis=-1) < 0.3, 3, 1)  # More attempts at what is hard.

    actions, probabilities, _ = tuples(N)
    hard = probabilities[choose(arm_rewards[actions]) == 3].sum()
    assert 0.1 < hard < 0.9
    mean = hard * objective_gradient(arm_rewards, 3) + (1 - hard) * objective_gradient(
        arm_rewards, 1
    )

    def of_another_group(rewards):
        """The mean over what an independent group may choose."""
        easy, difficult = (estimators.maxpo(rewards, np.full(len(rewards), k)) for k in (1, 3))
        return hard * difficult + (1 - hard) * easy

    same(expected_gradient(of_another_group, arm_rewards), mean)
    own = expected_gradient(lambda r: estimators.maxpo(r, choose(r)), arm_rewards)
    assert np.linalg.norm(own - mean) > 0.1 * np.linalg.norm(mean)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_loss_with_maxpo_advantages_has_the_gradient_of_the_objective(k):
    """As a user writes it: autodiff of the mean loss, averaged over every batch there is."""
    actions, probabilities, _ = tuples(N)
    with jax.enable_x64(True):
        advantages = estimators.maxpo(GRADED[actions], k)

        def expected_loss(logits):
            log_probs = jax.nn.log_softmax(logits)[actions]
            by_batch = jax.vmap(losses.score_function_loss)(log_probs, advantages)
            return probabilities @ by_batch

        gradient = jax.grad(expected_loss)(jax.numpy.asarray(LOGITS))
    same(-gradient, objective_gradient(GRADED, k))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_leave_two_out_baseline_has_no_expected_gradient(k):
    baseline = expected_gradient(lambda r: estimators.leave_two_out_baseline(r, k), GRADED)
    same(baseline, 0)


@arms
@pytest.mark.parametrize("alpha", [[0.3, 0.7], [1, 0, 0], [0, 1, 0], [0.1, -2, 3, 0.5]])
def test_l_statistic(alpha, arm_rewards):
    expected = objective_gradient(arm_rewards, len(alpha), lambda r: np.dot(alpha, np.sort(r)))
    same(expected_gradient(lambda r: estimators.l_statistic(r, alpha), arm_rewards), expected)


@pytest.mark.parametrize("k", [1.5, 2.5, 3.99])
def test_maxpo_at_real_k_has_an_objective_of_its_own(k):
    """An L-statistic of N - 1 samples with alpha_{m+1} = k p_m / (m + 1), p_m as in maxpo."""
    p = np.ones(N - 1)
    for m in range(N - 2, 0, -1):
        p[m - 1] = p[m] * max(m + 1 - k, 0) / (m + 1)
    alpha = k * p / np.arange(1, N)
    expected = objective_gradient(GRADED, N - 1, lambda r: np.dot(alpha, np.sort(r)))
    same(expected_gradient(lambda r: estimators.maxpo(r, k), GRADED), expected)


def test_max_rl_is_the_truncated_log_likelihood():
    success = POLICY[1]
    gradient = objective_gradient(BINARY, 1) * sum((1 - success) ** t for t in range(N - 1))
    same(expected_gradient(estimators.max_rl, BINARY), gradient)


@arms
def test_tail_rl_is_a_harmonic_sum_over_the_best_of_fewer_than_all(arm_rewards):
    expected = sum(objective_gradient(arm_rewards, t) / t for t in range(1, N))
    same(expected_gradient(estimators.tail_rl, arm_rewards), expected)


def over_parts(estimator, rewards, k):
    """k times an estimator of the best of each part, for all samples of the part."""
    best = rewards.reshape(*rewards.shape[:-1], -1, k).max(axis=-1)
    return k * np.repeat(np.asarray(estimator(best)), k, axis=-1)


PARTS = {"reinforce": ("pkpo", 1), "rloo": ("maxpo", 1), "dr_grpo": ("canonical", 1 - 2 / 4)}


@arms
@pytest.mark.parametrize("name", PARTS)
def test_estimators_of_the_best_of_each_part(name, arm_rewards):
    function = getattr(estimators, name)
    of_parts = expected_gradient(lambda r: over_parts(function, r, 2), arm_rewards, n=4)
    same(of_parts, PARTS[name][1] * objective_gradient(arm_rewards, 2))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", PARTS)
def test_the_average_over_all_partitions_is_the_estimator_of_the_whole_group(name, k):
    rewards = np.random.default_rng(0).normal(size=6).round(1)
    orders = np.array(list(itertools.permutations(range(6))))
    with jax.enable_x64(True):
        by_order = over_parts(getattr(estimators, name), rewards[orders], k)
        whole = getattr(estimators, PARTS[name][0])(rewards, k)
    average = np.zeros(6)
    np.add.at(average, orders, by_order / len(orders))
    np.testing.assert_allclose(average, whole, atol=1e-12)


@pytest.mark.parametrize("name", ["pkpo", "pkpo_loo_minus_one", "maxpo"])
def test_an_estimator_of_each_part_averages_to_that_of_the_whole_group(name):
    rewards = np.random.default_rng(1).normal(size=6).round(1)
    orders = np.array(list(itertools.permutations(range(6))))
    function = getattr(estimators, name)
    with jax.enable_x64(True):
        by_order = np.asarray(function(rewards[orders].reshape(-1, 2, 3), 2)).reshape(-1, 6)
        whole = function(rewards, 2)
    average = np.zeros(6)
    np.add.at(average, orders, by_order / len(orders))
    np.testing.assert_allclose(average, whole, atol=1e-12)


def test_a_weight_from_the_mean_of_the_whole_group_is_biased():
    def plugged_in(rewards):
        weight = 3 * (1 - rewards.mean(axis=-1, keepdims=True)) ** 2
        return weight * np.asarray(estimators.rloo(rewards))

    target = objective_gradient(BINARY, 3)
    found = expected_gradient(plugged_in, BINARY)
    assert np.linalg.norm(found - target) > 0.05 * np.linalg.norm(target)


BEHAVIOR = np.array([0.3, 0.3, 0.4])  # Of which samples are drawn for POLICY's gradient.
WAY = np.log(BEHAVIOR) - LOGITS  # From POLICY to it.


def off_policy_gradient(step, advantages):
    """E[(1/N) sum_i ratio_i A_i grad log pi(y_i)], the samples drawn `step` away from POLICY."""
    behavior = np.exp(LOGITS + step * WAY)
    behavior /= behavior.sum()
    actions, _, scores = tuples(4)
    ratios = (POLICY / behavior)[actions]
    weights = ratios * advantages(GRADED[actions], ratios)
    return np.einsum("b,bn,bnd->d", np.prod(behavior[actions], axis=1), weights, scores) / 4


def one_by_one(advantages):
    return lambda rewards, ratios: np.array(
        [advantages(r, w) for r, w in zip(rewards, ratios, strict=True)]
    )


@pytest.mark.parametrize("k", [2, 3])
def test_products_of_ratios_are_unbiased_off_policy(k):
    expected = objective_gradient(GRADED, k)
    exact = one_by_one(lambda r, ratios: oracles.off_policy(r, ratios, k))
    centered = one_by_one(
        lambda r, ratios: oracles.off_policy(r, ratios, k) - k * oracles.leave_two_out(r, k)
    )
    same(off_policy_gradient(1.0, exact), expected)
    same(off_policy_gradient(1.0, centered), expected)


def off_policy_bias(step, k, advantages):
    with jax.enable_x64(True):
        found = off_policy_gradient(step, advantages)
    return np.linalg.norm(found - objective_gradient(GRADED, k))


@pytest.mark.parametrize(("k", "order"), [(2, None), (3, 2)])
def test_the_bias_of_off_policy_maxpo_is_of_second_order_or_none(k, order):
    def bias(step):
        return off_policy_bias(
            step, k, lambda r, ratios: np.asarray(estimators.off_policy_maxpo(r, ratios, k))
        )

    if order is None:  # Products of one ratio.
        assert bias(1.0) < 1e-13
    else:
        assert abs(np.log2(bias(1e-3) / bias(5e-4)) - order) < 0.01


@pytest.mark.parametrize("k", [2, 3])
def test_the_bias_of_maxpo_off_policy_is_of_first_order(k):
    def bias(step):
        return off_policy_bias(step, k, lambda r, ratios: np.asarray(estimators.maxpo(r, k)))

    assert abs(np.log2(bias(1e-3) / bias(5e-4)) - 1) < 0.01


@pytest.mark.parametrize("k", [2, 3])
def test_recentering_the_expected_improvement_is_biased(k):
    """The trap: a trainer that subtracts the batch mean optimizes a mixture with k - 1."""

    def recentered(rewards):
        advantages = estimators.pkpo_loo_minus_one(rewards, k)
        return advantages - advantages.mean(axis=-1, keepdims=True)

    now, before = objective_gradient(GRADED, k), objective_gradient(GRADED, k - 1)
    same(expected_gradient(recentered, GRADED), (1 - k / N) * now + k / N * before)
    assert np.abs(before - now).max() > 0.01  # So that it matters.


def test_standardised_estimators_do_not_have_the_direction_of_their_objective():
    for estimator, k in (
        (estimators.grpo, 1),
        (lambda r: estimators.pass_at_k_training(r, 2), 2),
    ):
        rewards = GRADED if k == 1 else np.array([1.0, 1.0, 0.0])
        target = objective_gradient(rewards, k)
        actual = expected_gradient(estimator, rewards)
        cosine = actual @ target / np.linalg.norm(actual) / np.linalg.norm(target)
        ratio = np.linalg.norm(actual) / np.linalg.norm(target)
        assert cosine < 0.9999 or abs(ratio - 1) > 0.05
        assert cosine > 0.5
