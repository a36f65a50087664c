"""The values max@k and pass@k, the rank warp, and precision against exact rational arithmetic."""

import itertools
import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from maxpo import estimators, max_at_k, pass_at_k, rank_warp
from maxpo.order_statistics import powers_up_to

RNG = np.random.default_rng(1)
GROUPS = np.stack([RNG.normal(size=6), [1, 0, 0, 1, 0, 0], [2, 2, 2, 2, 2, 2], RNG.normal(size=6)])


@pytest.mark.parametrize("k", range(1, 7))
def test_max_at_k_is_the_mean_over_subsets(k):
    expected = [np.mean([max(s) for s in itertools.combinations(g, k)]) for g in GROUPS]
    np.testing.assert_allclose(max_at_k(GROUPS, k), expected, rtol=0, atol=1e-6)
    traced = jax.jit(max_at_k)(GROUPS, jnp.int32(k))
    np.testing.assert_allclose(traced, expected, rtol=0, atol=1e-6)


def test_max_at_k_under_vmap_over_k_and_a_mask():
    ks = jnp.arange(1, 5)
    where = np.array([True, True, False, True, True, False])
    swept = jax.vmap(lambda k: max_at_k(GROUPS, k, where=where))(ks)
    for k, row in zip(ks, swept, strict=True):
        np.testing.assert_allclose(row, max_at_k(GROUPS[:, where], int(k)), rtol=0, atol=1e-6)
        static = max_at_k(GROUPS, int(k), where=where)
        np.testing.assert_allclose(row, static, rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", [max_at_k, pass_at_k, rank_warp])
def test_one_k_for_each_group_equals_a_loop(function):
    rewards = np.stack([GROUPS, GROUPS[::-1]])
    rewards = rewards > 0 if function is pass_at_k else rewards
    ks = np.array([[1, 2, 5, 4.5], [3, 1, 2.25, 2]])
    where = np.arange(6) < np.array([[6, 4, 6, 3], [5, 6, 3, 2]])[..., None]
    one = jax.jit(function)
    for mask in (np.ones_like(where), where):
        expected = [
            one(group, k, where=valid)
            for group, k, valid in zip(
                rewards.reshape(8, 6), np.float32(ks.flat), mask.reshape(8, 6), strict=True
            )
        ]
        expected = np.reshape(expected, (2, 4, -1)).squeeze()
        for kind in (ks, ks.tolist(), jnp.asarray(ks)):
            np.testing.assert_allclose(
                function(rewards, kind, where=mask), expected, rtol=1e-6, atol=1e-6
            )
        np.testing.assert_allclose(one(rewards, ks, where=mask), expected, rtol=1e-6, atol=1e-6)


def test_values_of_one_k_for_each_group_in_exact_arithmetic():
    n, ks = 10, np.arange(1, 11)
    correct = np.arange(n) < np.arange(n + 1)[:, None, None]  # [n + 1, 1, n]
    correct = np.broadcast_to(correct, (n + 1, n, n))
    expected = [[1 - math.comb(n - c, k) / math.comb(n, k) for k in ks] for c in range(n + 1)]
    for function in (pass_at_k, max_at_k):
        np.testing.assert_allclose(function(correct, ks), expected, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_pass_at_k_in_exact_arithmetic(k):
    n = 10
    correct = np.arange(n) < np.arange(n + 1)[:, None]
    expected = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
    for dtype in (bool, np.int8, np.float32):
        np.testing.assert_allclose(pass_at_k(correct.astype(dtype), k), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(pass_at_k)(correct, jnp.int32(k)), expected, rtol=1e-6)
    where = np.append(np.ones(n, bool), False)
    padded = np.concatenate([correct, np.ones((n + 1, 1), bool)], axis=1)
    np.testing.assert_allclose(pass_at_k(padded, k, where=where), expected, rtol=1e-6)
    np.testing.assert_allclose(max_at_k(correct, k), expected, rtol=1e-6)


def test_small_values_keep_their_digits():
    rewards = np.zeros(4096, np.float32)
    rewards[7] = 1
    for k in (1, 3):
        for value in (max_at_k, pass_at_k):
            np.testing.assert_allclose(value(rewards, k), k / 4096, rtol=1e-6)
            np.testing.assert_allclose(jax.jit(value)(rewards, k), k / 4096, rtol=1e-6)


def test_values_of_bad_groups():
    bad = np.array([[1.0, np.nan, 0.0], [1.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
    value = np.asarray(pass_at_k(bad, 2))
    assert np.isnan(value[:2]).all()
    np.testing.assert_allclose(value[2], 2 / 3, rtol=1e-6)
    assert np.isnan(max_at_k(bad, 2)).tolist() == [True, False, False]
    where = np.array([[False, False, True], [False, True, True], [True, True, True]])
    for function in (max_at_k, pass_at_k):
        value = np.asarray(function(np.ones((3, 3)), 2, where=where))
        np.testing.assert_array_equal(value, [0, 1, 1])


@pytest.mark.parametrize("function", [max_at_k, pass_at_k, rank_warp])
def test_values_check_k(function):
    most = 5 if function is rank_warp else 6
    function(GROUPS[1], most)
    with pytest.raises(ValueError, match=f"{function.__name__}: .*N = 6.* got k = {most + 1}"):
        function(GROUPS[1], most + 1)
    with pytest.raises(ValueError, match=rf"{function.__name__}: .*N = 6.* k\[2\] = {most + 1}"):
        function(GROUPS, [1, most, most + 1, 0])


def test_values_take_any_leading_axes():
    stacked = np.stack([GROUPS[:2], GROUPS[1:3]])
    assert max_at_k(stacked, 2).shape == (2, 2)
    assert pass_at_k(stacked == 1, 2).shape == (2, 2)
    assert max_at_k(GROUPS[0], 2).shape == ()


@pytest.mark.parametrize("k", [1, 2, 2.5, 5])
def test_rank_warp_turns_mean_centering_into_maxpo(k):
    warped = np.asarray(rank_warp(GROUPS, k))
    np.testing.assert_allclose(
        estimators.rloo(warped), estimators.maxpo(GROUPS, k) / k, rtol=0, atol=2e-6
    )
    order = np.argsort(GROUPS, axis=-1)
    assert np.all(np.diff(np.take_along_axis(warped, order, axis=-1)) >= 0)
    assert np.all(warped.min(axis=-1) == 0)
    where = np.array([True, True, True, True, True, True, False])
    padded = np.pad(GROUPS, [(0, 0), (0, 1)], constant_values=np.nan)
    np.testing.assert_allclose(rank_warp(padded, k, where=where)[:, :6], warped, rtol=0, atol=2e-6)


# Precision ---------------------------------------------------------------------------------------


def check_against_rationals(rewards, k):
    """The project's bar for float32, for static, traced, masked and group-wise k alike."""
    exact = oracles.exact_maxpo([Fraction(float(r)) for r in rewards], k)
    largest = max(map(abs, exact))
    negligible = Fraction(1e-20) * Fraction(float(rewards.max() - rewards.min()))
    where = np.append(np.ones(len(rewards), bool), [False, False])
    padded = np.append(rewards, np.float32([3.0, np.nan]))
    for advantages in (
        estimators.maxpo(rewards, k),
        jax.jit(estimators.maxpo)(rewards, jnp.int32(k)),
        estimators.maxpo(padded, k, where=where)[: len(rewards)],
        estimators.maxpo(np.stack([rewards, rewards]), [1, k])[1],
    ):
        actual = [Fraction(float(a)) for a in np.asarray(advantages)]
        error = max(abs(a - e) for a, e in zip(actual, exact, strict=True))
        assert error <= max(Fraction(1e-5) * largest, negligible)
        assert abs(sum(actual)) <= Fraction(1e-6) * sum(map(abs, actual))


def rewards_of(kind, n, k, rng):
    if kind == "gaussian":
        return rng.normal(size=n).astype(np.float32)
    if kind == "heavy-tailed":
        return rng.standard_cauchy(size=n).astype(np.float32)
    if kind == "tied":
        return rng.integers(0, 5, size=n).astype(np.float32)
    # So many successes that the largest advantage is about the smallest that still counts.
    successes = min(max(1, 40 * n // k), n - 1)
    return rng.permutation(np.arange(n) < successes).astype(np.float32)


@pytest.mark.parametrize("kind", ["gaussian", "heavy-tailed", "tied", "binary"])
@pytest.mark.parametrize(
    ("n", "k"),
    [(2, 1), (16, 4), (16, 15), (257, 1), (257, 40), (257, 256)]
    + [(4096, k) for k in (1, 2, 512, 4095)],
)
def test_precision_against_exact_rationals(n, k, kind):
    check_against_rationals(rewards_of(kind, n, k, np.random.default_rng(n + k)), k)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_precision_of_any_rewards(data):
    rewards = data.draw(
        st.lists(st.floats(-1e3, 1e3, width=32, allow_subnormal=False), min_size=9, max_size=9)
    )
    check_against_rationals(np.float32(rewards), data.draw(st.integers(1, 8)))


@pytest.mark.parametrize("shape", [(1, 1 << 17), (8, 1000), (1024, 64)])
def test_the_compiled_program_holds_no_square_array(shape):
    compiled = jax.jit(lambda r: estimators.maxpo(r, 8)).lower(jnp.zeros(shape)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * math.prod(shape)


def test_powers_up_to_end_with_n():
    assert powers_up_to(1) == (1,)
    assert powers_up_to(16) == (1, 2, 4, 8, 16)
    assert powers_up_to(20) == (1, 2, 4, 8, 16, 20)
