"""Values against enumeration, and one suite that every estimator must pass."""

import inspect
import re
from decimal import Decimal
from fractions import Fraction
from functools import partial

import chex
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from maxpo import estimators, max_at_k, pass_at_k, rank_warp
from maxpo.integrations import host

RNG = np.random.default_rng(0)
N = 6
GROUPS = {
    "distinct": RNG.normal(size=N),
    "negative": RNG.normal(size=N) - 10,
    "tied": np.array([0.5, 2.0, 0.5, -1.0, 2.0, 2.0]),
    "one_success": np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
    "one_failure": np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]),
    "half": np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
}
CONSTANT = np.full(N, 0.1)  # Not a float32, and its sum is not N times itself.
TAKE_K = tuple(oracles.MAX_ESTIMATORS)
CENTERED = (
    "rloo",
    "dr_grpo",
    "grpo",
    "max_rl",
    "tail_rl",
    "pass_at_k_training",
    "maxpo",
    "canonical",
    "l_statistic",
)


def of_k(name):
    """The named function of rewards, a mask and perhaps a k."""
    if name == "blended":
        return lambda r, k, where=None: estimators.blended(r, k, oracles.BLEND, where=where)
    if name == "off_policy_maxpo":
        return lambda r, k, where=None: estimators.off_policy_maxpo(
            r, oracles.RATIO, k, where=where
        )
    return getattr(estimators, name)


def bind(name, k=2):
    """The named function of rewards and a mask alone."""
    function = of_k(name)
    parameters = inspect.signature(function).parameters
    if "rank_weights" in parameters:
        return partial(function, rank_weights=np.linspace(-0.5, 1.0, k))
    return partial(function, k=k) if "k" in parameters else function


# No advantages of rewards alone, but under the same rules.
NO_ESTIMATORS = ("leave_two_out_baseline", "standardize", "off_policy_maxpo")
every_estimator = pytest.mark.parametrize("name", [*estimators.names(), *NO_ESTIMATORS])
every_group = pytest.mark.parametrize("group", list(GROUPS.values()), ids=list(GROUPS))
every_k_estimator = pytest.mark.parametrize("name", TAKE_K)


# Values -----------------------------------------------------------------------------------------


def close(actual, expected):
    scale = max(np.max(np.abs(expected)), 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("name", oracles.MEAN_ESTIMATORS)
@every_group
def test_mean_estimators_equal_their_definition(name, group):
    close(of_k(name)(group), oracles.MEAN_ESTIMATORS[name](group))


@every_k_estimator
@every_group
def test_max_estimators_equal_enumeration_for_every_k(name, group):
    oracle, left_out = oracles.MAX_ESTIMATORS[name]
    for k in range(1, N - left_out + 1):
        close(of_k(name)(group, k), oracle(group, k))


@every_k_estimator
@every_group
def test_traced_k_equals_enumeration_without_recompiling(name, group):
    oracle, left_out = oracles.MAX_ESTIMATORS[name]
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(of_k(name), n=1))
    for k in range(1, N - left_out + 1):
        close(compiled(group, jnp.int32(k)), oracle(group, k))


@pytest.mark.parametrize("alpha", [[1.0], [0, 0, 1], [1, 0, 0], [0.2, -1, 3, 0.5], [1, 0, 0, 0, 2]])
@every_group
def test_l_statistic_equals_enumeration(alpha, group):
    expected = oracles.l_statistic(group, alpha)
    close(estimators.l_statistic(group, alpha), expected)
    close(jax.jit(estimators.l_statistic)(group, jnp.array(alpha, jnp.float32)), expected)


def test_binary_closed_form():
    import math

    n = 16
    for k in (2, 5):
        for c in range(n + 1):
            rewards = np.arange(n) < c
            success = k * math.comb(n - c, k) / math.comb(n - 1, k) if c else 0.0
            failure = -c / (n - c) * success if c < n else 0.0
            close(estimators.maxpo(rewards, k), np.where(rewards, success, failure))
            improvement = k * math.comb(n - c, k - 1) / math.comb(n - 1, k - 1) if c else 0.0
            actual = estimators.pkpo_loo_minus_one(rewards, k)
            close(actual, np.where(rewards, improvement, 0.0))


# Identities between estimators -------------------------------------------------------------------


@every_group
def test_k_of_one_reduces_to_the_mean_estimators(group):
    close(estimators.maxpo(group, 1), estimators.rloo(group))
    close(estimators.canonical(group, 1), estimators.dr_grpo(group))
    close(estimators.pkpo(group, 1), estimators.reinforce(group))
    close(estimators.pkpo_loo_minus_one(group, 1), estimators.reinforce(group))


@every_group
@pytest.mark.parametrize("k", [1, 2, 2.5, 5])
def test_identities(group, k):
    a = estimators
    maxpo = np.asarray(a.maxpo(group, k))
    close(a.canonical(group, k), (1 - k / N) * maxpo)
    close(k * a.rloo(rank_warp(group, k)), maxpo)
    close(a.pkpo_loo_minus_one(group, k) - a.leave_two_out_baseline(group, k), maxpo)
    if k == int(k):
        close(a.l_statistic(group, np.eye(k)[-1]), maxpo)
        value = np.asarray(max_at_k(group, k))
        close(np.sum(a.pkpo(group, k)), N * k * value)
        close(np.sum(a.pkpo_loo(group, k)), -k * N / (N - 1) * value)
        below = np.asarray(max_at_k(group, k - 1)) if k > 1 else 0.0
        close(np.sum(a.pkpo_loo_minus_one(group, k)), N * k * (value - below))


@every_group
@pytest.mark.parametrize("k", [1, 2, 4])
def test_reweighted_rloo_is_a_blend(group, k):
    reweighted = estimators.reweighted_rloo(group, k)
    close(reweighted, np.asarray(estimators.blended(group, k, (N - k) / (N - 1))))
    close(estimators.reweighted_rloo(group, 1), estimators.rloo(group))
    close(estimators.reweighted_rloo(group, N), estimators.pkpo_loo_minus_one(group, N))


@pytest.mark.parametrize("group", ["one_success", "one_failure", "half"])
def test_tail_rl_of_binary_rewards_is_max_rl(group):
    close(estimators.tail_rl(GROUPS[group]), estimators.max_rl(GROUPS[group]))


RATIOS = np.array([1.3, 0.4, 1.0, 0.9, 2.5, 0.7])


@every_group
def test_off_policy_maxpo_equals_enumeration(group):
    for k in range(1, N):
        expected = oracles.off_policy_maxpo(group, RATIOS, k)
        close(estimators.off_policy_maxpo(group, RATIOS, k), expected)
        close(jax.jit(estimators.off_policy_maxpo)(group, RATIOS, jnp.int32(k)), expected)


def test_off_policy_maxpo_at_ratios_of_one_is_maxpo_to_the_bit():
    for k in (1, 3, 2.5):
        expected = estimators.maxpo(batch(), k)
        np.testing.assert_array_equal(estimators.off_policy_maxpo(batch(), 1, k), expected)


def test_ratios_go_with_their_samples():
    ratios = np.stack([RATIOS, RATIOS[::-1], np.roll(RATIOS, 2)])
    function = partial(estimators.off_policy_maxpo, k=3)
    together = function(batch(), ratios)
    order = RNG.permutation(N)
    np.testing.assert_array_equal(function(batch()[:, order], ratios[:, order]), together[:, order])
    np.testing.assert_array_equal(jax.vmap(function)(batch(), jnp.float32(ratios)), together)
    assert np.any(together != function(batch(), RATIOS))
    where = np.array([True, True, False, True, True, True])
    poisoned = np.where(where, ratios, np.nan)
    masked = function(batch(), poisoned, where=where)
    close(masked[:, where], function(batch()[:, where], ratios[:, where]))
    ratios[1, 2] = np.inf
    bad = np.asarray(function(batch(), ratios))
    assert np.all(np.isnan(bad[1]))
    np.testing.assert_array_equal(bad[[0, 2]], together[jnp.array([0, 2])])


def test_wrong_ratios():
    with pytest.raises(ValueError, match=r"broadcast to the shape \[3, 6\] .* got shape \[3\]"):
        estimators.off_policy_maxpo(batch(), np.ones(3), 2)
    with pytest.raises(TypeError, match="off_policy_maxpo: expected ratios of a real dtype"):
        estimators.off_policy_maxpo(batch(), np.ones(N, complex), 2)


def test_no_gradient_into_ratios():
    ratios = jnp.asarray(RATIOS, jnp.float32)
    gradient = jax.grad(lambda w: jnp.sum(estimators.off_policy_maxpo(batch(), w, 2)))(ratios)
    np.testing.assert_array_equal(gradient, 0)


def test_canonical_vanishes_at_k_equal_n():
    np.testing.assert_array_equal(estimators.canonical(GROUPS["distinct"], N), 0)


def test_pkpo_loo_minus_one_is_never_negative():
    assert np.min(estimators.pkpo_loo_minus_one(RNG.normal(size=(50, N)), 3)) >= 0


def test_grpo_options():
    group = GROUPS["distinct"]
    centered = group - group.mean()
    close(estimators.grpo(group, epsilon=0.5, ddof=0), centered / (group.std() + 0.5))
    tiny = np.float32(1e-25) * np.arange(N)  # Whose squares are no float32s.
    close(estimators.grpo(tiny, epsilon=0.0), estimators.grpo(np.arange(N), epsilon=0.0))


@every_group
@pytest.mark.parametrize("ddof", [0, 1])
def test_grpo_is_centered_rewards_over_their_std(group, ddof):
    expected = estimators.grpo(group, ddof=ddof)
    close(estimators.standardize(group - group.mean(), ddof=ddof), expected)
    close(estimators.standardize(estimators.dr_grpo(group), ddof=ddof), expected)


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.5, "ddof": 0}, {"epsilon": 0.0}])
@pytest.mark.parametrize("name", ["maxpo", "pkpo", "pkpo_loo_minus_one"])
def test_standardized_advantages_are_those_over_their_std(name, options):
    advantages = np.asarray(bind(name)(batch()))
    epsilon, ddof = options.get("epsilon", 1e-6), options.get("ddof", 1)
    expected = [a / (a.std(ddof=ddof) + epsilon) for a in advantages]
    close(estimators.standardize(advantages, **options), np.stack(expected))


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_constant_advantages_standardize_to_exactly_zero(epsilon):
    where = np.append(np.ones(N, bool), False)
    assert not np.any(estimators.standardize(CONSTANT, epsilon=epsilon))
    assert not np.any(estimators.standardize(np.append(CONSTANT, 5), epsilon=epsilon, where=where))
    assert not np.any(estimators.standardize([[3.0], [-1.0]], epsilon=epsilon))
    assert np.all(estimators.standardize(np.append(CONSTANT, 5), epsilon=epsilon))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([-1, -1, 1, -1], [0, 0, 0, 0]),  # Dividing by -1/2 would turn the gradient round.
        ([1, -1, 0], [0, 0, 0]),  # A mean of 0 ...
        ([0.1, 0.2, -0.3], [0, 0, 0]),  # ... and one that only rounding makes positive.
        ([3e30, -1e30, -2e30], [0, 0, 0]),
        ([-0.5, 1, 0.25], [-3, 3, 0]),
        ([2, 0, 0, 2], [1, -1, -1, 1]),
        ([1e-30, 0], [1, -1]),
    ],
)
def test_max_rl_never_turns_the_gradient_round(rewards, expected):
    close(estimators.max_rl(rewards), expected)
    padded, where = np.append(rewards, -9), np.arange(len(rewards) + 1) < len(rewards)
    close(estimators.max_rl(padded, where=where), [*expected, 0])


@hypothesis.given(st.lists(st.integers(-20, 20), min_size=2, max_size=40))
def test_max_rl_in_exact_arithmetic(rewards):
    mean = sum(rewards) / len(rewards)
    tenths = np.array(rewards) / 10  # No float32 holds them.
    expected = [r / mean - 1 if sum(rewards) > 0 else 0 for r in rewards]
    np.testing.assert_allclose(estimators.max_rl(tenths), expected, rtol=1e-3, atol=1e-3)


def test_max_rl_of_one_success_in_many():
    rewards = np.zeros(2**17)
    rewards[5] = 1
    np.testing.assert_allclose(np.max(estimators.max_rl(rewards)), 2**17 - 1, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_training_of_other_rewards_keeps_the_direction_or_is_zero(k):
    rewards = RNG.normal(size=(50, N)) * np.array([[0.3]] * 25 + [[5.0]] * 25)
    maxpo = np.asarray(estimators.maxpo(rewards, k))
    value = np.asarray(max_at_k(rewards, k))
    scaled = np.asarray(estimators.pass_at_k_training(rewards, k))
    inside = (value > 0) & (value < 1)
    assert 0 < inside.sum() < len(rewards)
    assert not scaled[~inside].any()
    assert np.all(np.sum(scaled * maxpo, axis=-1)[inside] > 0)


# One suite for all -------------------------------------------------------------------------------


def batch():
    return np.stack([GROUPS["distinct"], GROUPS["tied"], GROUPS["half"]]).astype(np.float32)


@every_estimator
def test_jit_equals_eager(name):
    function = bind(name)
    close(jax.jit(function)(batch()), function(batch()))


@every_estimator
def test_leading_axes_equal_vmap_equal_a_loop(name):
    function = bind(name)
    rewards = np.stack([batch(), -batch()])  # [2, 3, N]
    expected = np.stack([[function(group) for group in groups] for groups in rewards])
    np.testing.assert_array_equal(function(rewards), expected)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(function))(rewards), expected)


@every_k_estimator
def test_vmap_over_k_equals_a_loop(name):
    function = of_k(name)
    ks = jnp.arange(1, N)
    swept = jax.vmap(function, in_axes=(None, 0))(batch(), ks)
    chex.assert_trees_all_close(
        swept, jnp.stack([function(batch(), int(k)) for k in ks]), atol=3e-6
    )


@every_estimator
def test_masked_equals_gathered(name):
    function = bind(name)
    group = GROUPS["tied"].astype(np.float32)
    for valid in range(3, N + 1):
        where = np.arange(N + 1) < valid
        where = np.roll(where, 2)
        rewards = np.full(N + 1, np.nan, np.float32)  # Poison where nobody may look.
        rewards[where] = group[:valid]
        actual = function(rewards, where=where)
        close(actual[where], function(group[:valid]))
        np.testing.assert_array_equal(actual[~where], 0)


@every_k_estimator
def test_traced_k_with_a_mask(name):
    oracle, left_out = oracles.MAX_ESTIMATORS[name]
    compiled = jax.jit(of_k(name))
    group = GROUPS["tied"]
    where = np.array([True, False, True, True, True, False])
    for k in range(1, 4 - left_out + 1):
        actual = compiled(group, jnp.int32(k), where=where)
        close(actual[where], oracle(group[where], k))
        np.testing.assert_array_equal(actual[~where], 0)


GROUP_KS = np.array([[2, 1, 4.5], [3, 5, 1.25]])  # One for each group of `groups_of_k`.


def groups_of_k():
    return np.stack([batch(), -batch()])  # [2, 3, N]


def scalar_by_scalar(name, rewards, ks, where=None):
    """Each group by itself, with a scalar k that is traced."""
    one = jax.jit(of_k(name))
    where = np.ones(rewards.shape, bool) if where is None else where
    return np.stack(
        [
            [one(*arguments[:2], where=arguments[2]) for arguments in zip(*rows, strict=True)]
            for rows in zip(rewards, np.float32(ks), where, strict=True)
        ]
    )


@every_k_estimator
def test_one_k_for_each_group_equals_enumeration(name):
    oracle, left_out = oracles.MAX_ESTIMATORS[name]
    groups = np.stack([GROUPS["tied"]] * (N - left_out))
    ks = np.arange(1, N - left_out + 1)
    expected = np.stack([oracle(group, k) for group, k in zip(groups, ks, strict=True)])
    for kind in (ks, ks.tolist(), tuple(ks), jnp.asarray(ks), ks.astype(np.float32)):
        close(of_k(name)(groups, kind), expected)
    close(jax.jit(of_k(name))(groups, ks), expected)
    close(jax.vmap(of_k(name))(groups, jnp.asarray(ks)), expected)
    close(jax.jit(lambda r, *k: of_k(name)(r, list(k)))(groups, *ks.tolist()), expected)


@every_k_estimator
def test_one_k_for_each_group_equals_a_loop(name):
    rewards, function = groups_of_k(), of_k(name)
    for ks in (GROUP_KS, np.int64(GROUP_KS)):
        expected = scalar_by_scalar(name, rewards, ks)
        close(function(rewards, ks), expected)
        close(jax.jit(function)(rewards, ks), expected)
        close(jax.vmap(function)(rewards, jnp.asarray(ks)), expected)


@every_k_estimator
def test_k_broadcasts_to_the_groups(name):
    rewards, function = groups_of_k(), of_k(name)
    for ks in (GROUP_KS[0], GROUP_KS[:, :1], GROUP_KS[:1], [2]):
        full = np.broadcast_to(ks, rewards.shape[:-1])
        np.testing.assert_array_equal(function(rewards, ks), function(rewards, full))


@every_k_estimator
def test_one_k_for_each_group_with_a_mask(name):
    """Each group's own number of valid samples counts: 2 to 6 of them here."""
    where = np.arange(N) < np.array([[6, 5, 3], [2, 6, 4]])[..., None]
    where = where[..., ::-1]
    rewards = np.where(where, groups_of_k(), np.nan)
    ks = np.array([[3, 2, 4], [1, 5, 2.5]])
    expected = scalar_by_scalar(name, rewards, ks, where)
    for function in (of_k(name), jax.jit(of_k(name))):
        close(function(rewards, ks, where=where), expected)
    gathered = of_k(name)(rewards[0, 1][where[0, 1]], 2)
    close(of_k(name)(rewards, ks, where=where)[0, 1][where[0, 1]], gathered)
    np.testing.assert_array_equal(expected[0, 2], 0)  # 3 samples for a k of 4.


@every_k_estimator
def test_one_k_for_each_group_leaves_ties_equal_and_bad_groups_alone(name):
    rewards = np.stack([GROUPS["tied"], GROUPS["tied"], [0, np.nan, 1, 1, 2, 3]])
    actual = np.asarray(of_k(name)(rewards, [2, 3, 4]))
    for group, advantages in zip(rewards[:2], actual[:2], strict=True):
        for level in np.unique(group):
            assert len(np.unique(advantages[group == level])) == 1
    assert np.all(np.isnan(actual[2]))


@every_k_estimator
def test_traced_k_of_some_groups_too_large_or_too_small(name):
    """Concerns those groups alone."""
    ks = jnp.float32([2, N + 1, 0.5, np.nan])
    rewards = np.stack([GROUPS["distinct"]] * 4)
    actual = np.asarray(jax.jit(of_k(name))(rewards, ks))
    close(actual[0], of_k(name)(GROUPS["distinct"], 2))
    np.testing.assert_array_equal(actual[1], 0)
    assert np.all(np.isnan(actual[2:]))


@every_k_estimator
def test_one_k_for_each_group_in_float64_and_in_strict_modes(name):
    rewards = groups_of_k()
    for dtype, tolerance in ((jnp.float32, 3e-6), (jnp.float64, 1e-13)):
        with (
            jax.enable_x64(True),
            jax.numpy_rank_promotion("raise"),
            jax.numpy_dtype_promotion("strict"),
        ):
            actual = of_k(name)(jnp.asarray(rewards, dtype), GROUP_KS)
            one_by_one = [
                of_k(name)(jnp.asarray(group, dtype), float(k))
                for group, k in zip(rewards.reshape(-1, N), GROUP_KS.flat, strict=True)
            ]
            expected = np.reshape(one_by_one, rewards.shape)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(actual).max())


@every_k_estimator
def test_no_gradient_into_one_k_for_each_group(name):
    gradients = jax.grad(lambda r, k: jnp.sum(of_k(name)(r, k) ** 2), (0, 1))(
        jnp.asarray(groups_of_k()), jnp.asarray(GROUP_KS)
    )
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_blended_with_a_k_and_a_weight_for_each_group():
    rewards, weights = groups_of_k(), RNG.normal(size=(2, 3))
    expected = [
        [estimators.blended(r, float(k), w) for r, k, w in zip(*row, strict=True)]
        for row in zip(rewards, GROUP_KS, weights, strict=True)
    ]
    close(estimators.blended(rewards, GROUP_KS, weights), np.array(expected))


@every_estimator
def test_mask_broadcasts(name):
    function = bind(name)
    where = np.array([True, True, True, True, False, True])
    full = np.broadcast_to(where, batch().shape)
    np.testing.assert_array_equal(function(batch(), where=where), function(batch(), where=full))


@every_estimator
def test_a_full_mask_changes_nothing(name):
    function = bind(name)
    close(function(batch(), where=np.ones(N, bool)), function(batch()))


@every_estimator
def test_too_few_valid_samples_give_zeros(name):
    function = bind(name, k=3)
    rewards = np.stack([GROUPS["one_success"]] * 4)
    where = np.arange(N) < np.array([[0], [1], [2], [5]])
    actual = np.asarray(function(rewards, where=where))
    assert np.all(np.isfinite(actual))
    np.testing.assert_array_equal(actual[0], 0)
    if name in ("maxpo", "pkpo_loo", "leave_two_out_baseline", "l_statistic", "canonical"):
        np.testing.assert_array_equal(actual[:3], 0)
    assert np.any(actual[3] != 0)


@every_k_estimator
def test_traced_k_too_large_gives_zeros_and_too_small_gives_nan(name):
    function = jax.jit(of_k(name))
    np.testing.assert_array_equal(function(batch(), jnp.float32(N + 1)), 0)
    assert np.all(np.isnan(function(batch(), jnp.float32(0.5))))
    assert np.all(np.isnan(function(batch(), jnp.float32(np.nan))))


@every_estimator
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_reward_poisons_its_group_only(name, bad):
    function = bind(name)
    rewards = batch()
    rewards[1, 3] = bad
    actual = np.asarray(function(rewards))
    assert np.all(np.isnan(actual[1]))
    np.testing.assert_array_equal(actual[[0, 2]], np.asarray(function(batch()))[[0, 2]])
    where = np.ones((3, N), bool)
    where[:, 0] = False
    masked = np.asarray(function(rewards, where=where))
    assert np.all(np.isnan(masked[1, 1:]))
    np.testing.assert_array_equal(masked[:, 0], 0)


@every_estimator
@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8", "bfloat16", "float16", "float32"])
def test_narrow_dtypes_are_cast_to_float32_first(name, dtype):
    function = bind(name)
    rewards = jnp.asarray(GROUPS["half"]).astype(dtype)
    actual = function(rewards)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, function(rewards.astype(jnp.float32)))


BILLIONS = [3_000_000_000, 1_000_000_000, 2_000_000_000, 0]
WIDE = {
    "int64": np.array(BILLIONS),
    "uint32": np.array(BILLIONS, np.uint32),
    "uint64": np.array(BILLIONS, np.uint64),
    "float64": np.array(BILLIONS, np.float64),
    "longdouble": np.array(BILLIONS, np.longdouble),
    "list": BILLIONS,
    "tuple of scalars": tuple(np.int64(x) for x in BILLIONS),
    "a list with arrays": [jnp.float32(3e9), *BILLIONS[1:]],
    "objects": np.array(BILLIONS, object),
    "fractions": [Fraction(x) for x in BILLIONS],
    "decimals": [Decimal(x) for x in BILLIONS],
}


@every_estimator
def test_wide_numbers_count_by_value(name):
    """What JAX itself would cut to 32 bits, or has no type for."""
    expected = np.asarray(bind(name)(np.float32(BILLIONS)))
    for kind, rewards in WIDE.items():
        np.testing.assert_allclose(
            bind(name)(rewards), expected, rtol=1e-6, atol=1e-6 * abs(expected).max(), err_msg=kind
        )


@pytest.mark.parametrize(
    "function", [max_at_k, rank_warp, host.maxpo, host.max_at_k, host.rank_warp]
)
def test_wide_numbers_count_by_value_elsewhere(function):
    expected = np.asarray(function(np.float32(BILLIONS), 2))
    for kind, rewards in WIDE.items():
        np.testing.assert_allclose(function(rewards, 2), expected, rtol=1e-6, err_msg=kind)


def test_wide_numbers_in_numbers():
    for integers in (np.array(BILLIONS[:3]), np.array(BILLIONS[:3], np.uint64), BILLIONS[:3]):
        close(estimators.maxpo(integers, 2), [2e9, -1e9, -1e9])
        close(host.maxpo(integers, 2), [2e9, -1e9, -1e9])
    close(estimators.maxpo([2**70, 0, 2**69], 2), [2.0**70, -(2.0**69), -(2.0**69)])
    close(max_at_k(np.array([2**64 - 1, 2**63], np.uint64), 1), 0.75 * 2.0**64)
    close(estimators.reinforce([-(2**63), 2**63 - 1]), [-(2.0**63), 2.0**63])
    np.testing.assert_array_equal(pass_at_k([True, Fraction(1), Decimal(0), 2**0], 1), 0.75)


@pytest.mark.parametrize("huge", [1e40, 10**400, -(10**400)])
def test_what_no_float32_holds_is_infinite(huge):
    """Of a group, as an infinite reward."""
    rewards = [[0.0, 1.0, 2.0], [0.0, huge, 1.0]]
    with jax.enable_x64(False):
        advantages = np.asarray(estimators.maxpo(rewards, 2))
    assert np.isnan(advantages).tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (["1", "2"], "expected rewards of a real dtype, got <U1"),
        ([1, None], "expected rewards to be real numbers, got None"),
        (np.array([1, 2], "m8[s]"), "expected rewards of a real dtype, got timedelta64"),
        ([1j, 2], "expected rewards of a real dtype, got complex128"),
        ([2**70, 1j], "expected rewards to be real numbers, got 1j"),
    ],
)
def test_what_is_no_number(rewards, message):
    for function in (estimators.maxpo, host.maxpo):
        with pytest.raises(TypeError, match=f"maxpo: {re.escape(message)}"):
            function(rewards, 1)


def test_ragged_groups():
    for function in (estimators.maxpo, host.maxpo):
        with pytest.raises(ValueError, match="maxpo: expected rewards in a regular array: "):
            function([[1, 2, 3], [4, 5]], 1)


@every_estimator
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        actual = bind(name)(jnp.asarray(batch(), jnp.float64))
        masked = bind(name)(jnp.asarray(batch(), jnp.float64), where=np.ones(N, bool))
    assert actual.dtype == masked.dtype == jnp.float64
    np.testing.assert_allclose(actual, masked, rtol=0, atol=1e-14 * np.max(np.abs(actual)))
    np.testing.assert_allclose(actual, bind(name)(batch()), rtol=0, atol=3e-6)


@every_estimator
def test_float32_stays_float32_under_x64(name):
    with jax.enable_x64(True):
        rewards = jnp.asarray(batch(), jnp.float32)
        for where in (None, np.ones(N, bool)):
            assert bind(name)(rewards, where=where).dtype == jnp.float32


@every_estimator
def test_tied_rewards_get_equal_bits(name):
    function = bind(name)
    levels = RNG.normal(size=7).astype(np.float32)
    levels[0] = 0.0
    rewards = levels[RNG.integers(0, 7, size=(20, 40))]
    rewards[0, :2] = [0.0, -0.0]
    for group, advantages in zip(rewards, np.asarray(function(rewards)), strict=True):
        for level in np.unique(group):
            assert len(np.unique(advantages[group == level])) == 1


@every_estimator
def test_order_of_samples_does_not_matter(name):
    function = bind(name)
    order = RNG.permutation(N)
    np.testing.assert_array_equal(function(batch()[:, order]), function(batch())[:, order])


@pytest.mark.parametrize(
    "name",
    [
        *("rloo", "dr_grpo", "grpo", "tail_rl", "maxpo", "canonical", "l_statistic"),
        *("pkpo_loo_minus_one", "reweighted_rloo", "off_policy_maxpo"),
    ],
)
@pytest.mark.parametrize("size", [16, 200])
def test_a_shift_changes_no_bit(name, size):
    function = bind(name, k=3)
    rewards = RNG.integers(-640, 640, size=(5, size)).astype(np.float32) / 64
    np.testing.assert_array_equal(function(rewards + 1e4), function(rewards))


@every_estimator
def test_no_gradient_into_rewards(name):
    function = bind(name)
    gradient = jax.grad(lambda r: jnp.sum(function(r) ** 2 + r))(jnp.asarray(batch()))
    np.testing.assert_array_equal(gradient, 1)


@every_k_estimator
def test_no_gradient_into_k(name):
    function = of_k(name)
    np.testing.assert_array_equal(jax.grad(lambda k: jnp.sum(function(batch(), k)))(2.0), 0)


@pytest.mark.parametrize("name", CENTERED)
def test_constant_groups_get_exactly_zero(name):
    assert not np.any(bind(name)(CONSTANT))
    masked = bind(name)(np.append(CONSTANT, 5.0), where=np.append(np.ones(N, bool), False))
    assert not np.any(masked)


def test_grpo_of_a_constant_group_is_zero_without_epsilon():
    assert not np.any(estimators.grpo(CONSTANT, epsilon=0.0))


@pytest.mark.parametrize("name", CENTERED)
@hypothesis.given(
    rewards=hypothesis.extra.numpy.arrays(
        np.float32,
        (1, N),
        elements=st.one_of(
            st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
        ),
    ),
    k=st.floats(1.0, N - 1, width=32),
)
def test_centered_ties_and_order_for_any_rewards_and_real_k(name, rewards, k):
    function = of_k(name)
    if name == "max_rl":  # Divides by the mean, so its order is that of rewards >= 0.
        rewards = np.abs(rewards)
    if "k" in inspect.signature(function).parameters:
        advantages = np.asarray(function(rewards, k), np.float64)
    else:
        advantages = np.asarray(bind(name)(rewards), np.float64)
    assert abs(advantages.sum()) <= 1e-6 * np.abs(advantages).sum()
    if name != "l_statistic":  # Whose weights may prefer a lower rank.
        order = np.argsort(rewards[0])
        assert np.all(np.diff(advantages[0, order]) >= -1e-6 * np.abs(advantages).max())


# Mistakes ----------------------------------------------------------------------------------------


@every_k_estimator
def test_k_out_of_range_is_an_error_that_names_both(name):
    _, left_out = oracles.MAX_ESTIMATORS[name]
    function = of_k(name)
    function(GROUPS["half"], N - left_out)
    for k in (0, -1, N - left_out + 1, 0.5, N - left_out + 0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"^{name}: .*N = {N}.* got k = {k}$"):
            function(GROUPS["half"], k)
        with pytest.raises(ValueError, match=f"got k = {k}"):
            jax.jit(partial(function, k=k))(GROUPS["half"])
    with pytest.raises(ValueError, match="got k = 7"):
        function(GROUPS["half"], jnp.int32(7))
    with pytest.raises(ValueError, match="got k = 7"):
        function(GROUPS["half"], np.int64(7))


@every_k_estimator
@pytest.mark.parametrize("k", [True, "4", None, 2j, jnp.array(True)])
def test_k_of_the_wrong_type(name, k):
    with pytest.raises(TypeError, match=f"{name}: expected k to be a real scalar"):
        of_k(name)(GROUPS["half"], k)


@every_k_estimator
def test_one_k_for_each_group_out_of_range_is_an_error_that_names_the_first(name):
    most, function = N - oracles.MAX_ESTIMATORS[name][1], of_k(name)
    rewards = groups_of_k()
    for wrong in (0, -1, most + 1, 0.5, most + 0.5, float("nan"), float("inf")):
        ks = np.array([[1, 2, most], [2, wrong, 99]])
        for kind in (ks, ks.tolist(), jnp.asarray(ks)):
            with pytest.raises(ValueError, match=rf"^{name}: .*N = {N} .* k\[1, 1\] = {wrong}$"):
                function(rewards, kind)
            with pytest.raises(ValueError, match=rf"k\[1, 1\] = {wrong}"):
                jax.jit(partial(function, k=kind))(rewards)
    with pytest.raises(ValueError, match=r"k\[0\] = 7"):
        function(rewards, [7, 1, 1])
    near = np.array([1 - 2**-23, most * (1 + 2**-23), 2 - 2**-22])
    close(function(rewards, near), function(rewards, [1, most, 2]))


@every_k_estimator
def test_k_of_the_wrong_shape_or_dtype(name):
    function = of_k(name)
    for shape in ((2,), (2, 3, 1), (1, 2, 3), (0,)):
        with pytest.raises(ValueError, match=rf"{name}: .* broadcasts to \[2, 3\], got shape"):
            function(groups_of_k(), np.ones(shape))
        with pytest.raises(ValueError, match=rf"{name}: .* broadcasts to \[2, 3\], got shape"):
            jax.jit(function)(groups_of_k(), jnp.ones(shape))
    with pytest.raises(ValueError, match=r"broadcasts to \[\], got shape \[2\]"):
        function(GROUPS["half"], [1, 2])
    with pytest.raises(TypeError, match=f"{name}: expected k to be real numbers, got booleans"):
        function(groups_of_k(), [True, 2, 1])
    with pytest.raises(TypeError, match=f"{name}: expected k of a real dtype, got complex"):
        function(groups_of_k(), [1j, 2, 1])


@every_k_estimator
def test_a_k_that_misses_an_integer_by_rounding_is_that_integer(name):
    function = of_k(name)
    most = N - oracles.MAX_ESTIMATORS[name][1]
    for k, near in ((1, 1 - 2**-23), (most, most * (1 + 2**-23)), (2, 2 - 2**-22)):
        close(function(GROUPS["tied"], near), function(GROUPS["tied"], k))
        close(jax.jit(function)(GROUPS["tied"], jnp.float32(near)), function(GROUPS["tied"], k))


@every_k_estimator
def test_nothing_jumps_as_k_passes_an_integer(name):
    compiled = jax.jit(of_k(name))
    for k in (1.0, 2.0, 3.0):
        at, after = (np.asarray(compiled(GROUPS["negative"], k + step)) for step in (0, 1e-4))
        assert np.max(np.abs(at - after)) < 1e-2


def test_numpy_numbers_are_static_k():
    expected = estimators.maxpo(GROUPS["half"], 2)
    for k in (np.int64(2), np.float32(2.0), 2.0, np.array(2), jnp.array(2)):
        close(estimators.maxpo(GROUPS["half"], k), expected)


@pytest.mark.parametrize("name", ["rloo", "reweighted_rloo"])
def test_rloo_needs_two_samples(name):
    with pytest.raises(ValueError, match=f"{name}: expected groups of N >= 2 samples, got N = 1"):
        bind(name, k=1)([1.0])


@every_estimator
def test_wrong_rewards_and_masks(name):
    function = bind(name, k=1)
    with pytest.raises(ValueError, match=rf"{name}: expected rewards of shape \[..., N\]"):
        function(1.0)
    with pytest.raises(ValueError, match=r"got shape \[3, 0\]"):
        function(np.zeros((3, 0)))
    with pytest.raises(TypeError, match="real dtype, got complex64"):
        function(np.zeros(3, np.complex64))
    with pytest.raises(TypeError, match="boolean mask `where`, got dtype"):
        function(np.zeros(3), where=np.ones(3))
    with pytest.raises(ValueError, match=r"broadcasts to the shape \[3\] .* got shape \[2\]"):
        function(np.zeros(3), where=np.ones(2, bool))


@pytest.mark.parametrize("alpha", [[], np.ones(N), [[1.0]], 1.0])
def test_wrong_rank_weights(alpha):
    with pytest.raises(ValueError, match=r"rank_weights of shape \[K\] .* N - 1 = 5 .* got shape"):
        estimators.l_statistic(GROUPS["half"], alpha)


@pytest.mark.parametrize("name", ["grpo", "standardize"])
def test_wrong_options_of_the_std(name):
    with pytest.raises(ValueError, match=f"{name}: expected epsilon >= 0, got -1"):
        of_k(name)(CONSTANT, epsilon=-1)
    with pytest.raises(ValueError, match=f"{name}: expected ddof to be 0 or 1, got 2"):
        of_k(name)(CONSTANT, ddof=2)


def test_registry():
    defined = {
        name
        for name, value in vars(estimators).items()
        if inspect.isfunction(value)
        and value.__module__ in (estimators.__name__, "maxpo._off_policy")
        and not name.startswith("_")
    }
    # All that is public, but for the registry itself and what is no advantage of rewards.
    assert {*estimators.names()} == defined - {"get", "names", *NO_ESTIMATORS}
    # And each has its place in the suite above.
    assert defined - {"get", "names"} == {*oracles.MEAN_ESTIMATORS, *TAKE_K, "l_statistic"}
    for name in estimators.names():
        assert estimators.get(name) is getattr(estimators, name)
    with pytest.raises(ValueError, match=r"reinforce, rloo, .*maxpo.*; got 'maxp0'"):
        estimators.get("maxp0")
