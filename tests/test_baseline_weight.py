"""The weight of past updates: no bias over all histories, the least variance in the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_unbiasedness as exact

from maxpo import baseline_weight, estimators
from maxpo.baseline_weight import init_weight, update_weight, weight_of


def gradients(n, k):
    """Odds of all groups of n, and D and H of an update that is one group, in float64."""
    actions, odds, scores = exact.tuples(n)
    with jax.enable_x64(True):
        d, h = (
            np.einsum("bn,bnd->bd", np.asarray(function(exact.GRADED[actions], k)), scores) / n
            for function in (estimators.pkpo_loo_minus_one, estimators.leave_two_out_baseline)
        )
    return odds, d, h


@pytest.mark.parametrize("caution", [0.0, 2.0])
@pytest.mark.parametrize("k", [1, 2])
def test_unbiased_over_every_history(k, caution):
    """All 27^3 histories of three updates of one group: the third's weight is of the first two."""
    odds, d, h = gradients(3, k)

    def weight(first, second):
        state = init_weight()
        for group in (first, second):
            state = update_weight(state, jnp.asarray(d)[group], jnp.asarray(h)[group], decay=0.9)
        return weight_of(state, decay=0.9, caution=caution)

    first, second = (x.ravel() for x in np.meshgrid(range(len(odds)), range(len(odds))))
    with jax.enable_x64(True):
        w = np.asarray(jax.vmap(weight)(first, second))
    assert w.std() > 0.05  # So that independence matters.
    third = d[None] - w[:, None, None] * h[None]
    mean = np.einsum("h,b,hbd->d", odds[first] * odds[second], odds, third)
    np.testing.assert_allclose(mean, exact.objective_gradient(exact.GRADED, k), rtol=0, atol=1e-12)


def test_a_weight_from_the_same_group_is_biased():
    odds, d, h = gradients(3, 2)
    squares = np.sum(h * h, axis=1)
    w = np.clip(np.sum(d * h, axis=1) / np.where(squares > 0, squares, 1), 0, 1)
    mean = odds @ (d - w[:, None] * h)
    assert np.abs(mean - exact.objective_gradient(exact.GRADED, 2)).max() > 0.01


def test_tends_to_the_weight_of_least_variance():
    odds, d, h = gradients(5, 2)
    best = odds @ np.sum(d * h, axis=1) / (odds @ np.sum(h * h, axis=1))
    assert 0.1 < best < 0.9
    signal = np.sum(exact.objective_gradient(exact.GRADED, 2) ** 2)

    def variance(w):
        return odds @ np.sum((d - w * h) ** 2, axis=1) - signal

    assert variance(best) < 0.99 * min(variance(0), variance(1))
    drawn = np.random.default_rng(0).choice(len(odds), p=odds, size=20000)

    def step(state, update):
        return update_weight(state, *update, decay=0.9995), None

    updates = jnp.asarray(d, jnp.float32)[drawn], jnp.asarray(h, jnp.float32)[drawn]
    state, _ = jax.lax.scan(step, init_weight(), updates)
    for caution in (0.0, 2.0):
        w = float(weight_of(state, decay=0.9995, caution=caution))
        assert abs(w - best) < 0.1
        assert variance(w) < min(variance(0), variance(1))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_moments_split_into_own_and_shared_parts(k):
    """E|H|^2 and E[D.H] as `docs/theory.md` splits them, by enumeration."""
    n = 4
    odds, d, h = gradients(n, k)
    actions, _, scores = exact.tuples(n)
    with jax.enable_x64(True):
        improvement, baseline = (
            np.asarray(function(exact.GRADED[actions], k))
            for function in (estimators.pkpo_loo_minus_one, estimators.leave_two_out_baseline)
        )
    norms = np.sum(scores**2, axis=2)
    # E over x of B(x, R) S(x): x is the second sample, R are those after it.
    felt = {}
    for group, p, b, score in zip(actions, odds, baseline[:, 0], scores[:, 1], strict=True):
        rest = tuple(group[2:])
        felt[rest] = felt.get(rest, 0) + p / np.prod(exact.POLICY[list(rest)]) * b * score
    shared = sum(np.prod(exact.POLICY[list(rest)]) * np.sum(x**2) for rest, x in felt.items())
    own = odds @ baseline[:, 0] ** 2 * (odds @ norms[:, 0])
    exact.same(odds @ np.sum(h * h, axis=1), (own + (n - 1) * shared) / n)

    # Given the first sample and R, B of the second one is fixed, and EI of the first is not.
    own = odds @ (improvement[:, 0] * baseline[:, 0] * norms[:, 0])
    products = np.sum(scores[:, 0] * scores[:, 1], axis=1)
    shared = odds @ (baseline[:, 1] * improvement[:, 0] * products)
    exact.same(odds @ np.sum(d * h, axis=1), (own + (n - 1) * shared) / n)


def test_the_first_weights():
    state = init_weight()
    assert weight_of(state, decay=0.9) == 1
    assert weight_of(state, decay=0.9, initial=0.25) == 0.25
    for cross, end in ((0.3, 0), (0.7, 1)):
        one = update_weight(state, jnp.array([cross]), jnp.array([1.0]), decay=0.9)
        assert weight_of(one, decay=0.9) == end  # One update proves nothing: the nearer end.
        assert weight_of(one, decay=0.9, caution=0.0) == pytest.approx(cross)
    silent = update_weight(state, jnp.zeros(3), jnp.zeros(3), decay=0.9)
    assert weight_of(silent, decay=0.9) == 1  # No baseline was felt.


def test_stays_within_0_and_1_and_shrinks_to_the_better_end():
    """By hand: D.H in {0.2, 0.4} and |H|^2 = 1, alternating."""
    state = init_weight()
    for update in range(400):
        state = baseline_weight.add_products(state, 0.2 + 0.2 * (update % 2), 1.0, decay=0.95)
    plain, careful = (float(weight_of(state, decay=0.95, caution=c)) for c in (0.0, 2.0))
    n = 1.95 / 0.05
    assert plain == pytest.approx(0.3, abs=0.01)
    assert careful == pytest.approx(plain - 4 * 0.1**2 / (n - 1) / plain, abs=1e-3)
    for cross, end in ((-3.0, 0), (3.0, 1)):
        state = init_weight()
        for _ in range(3):
            state = baseline_weight.add_products(state, cross, 1.0, decay=0.95)
        assert weight_of(state, decay=0.95) == end


def test_gradients_are_pytrees_of_any_dtype():
    d = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]], jnp.bfloat16)}
    h = {"a": jnp.array([0.5, 1.0]), "b": jnp.array([[-1.0]], jnp.bfloat16)}
    state = jax.jit(lambda *x: update_weight(init_weight(), *x, decay=0.5))(d, h)
    cross, square = 0.5 + 2 - 3, 0.25 + 1 + 1
    expected = [cross, square, cross**2, cross * square, square**2]
    np.testing.assert_allclose(state.moments, 0.5 * np.array(expected))
    assert state.updates == 1
    with pytest.raises(ValueError):  # noqa: PT011 - jax's own words.
        update_weight(state, d, h["a"], decay=0.5)


def test_bad_options():
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match="decay: expected a number in"):
            weight_of(init_weight(), decay=decay)
    with pytest.raises(ValueError, match="caution: expected at least 0, got -1"):
        weight_of(init_weight(), decay=0.9, caution=-1.0)
