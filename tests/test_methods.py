"""What a method's string means, and what is no method."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxpo import estimators, methods
from maxpo.adaptive_k import AdaptiveK
from maxpo.methods import Method, parse_method, parse_methods
from maxpo.studies.variance.unbiasedness import VARIANTS

REWARDS = jnp.array([[0.0, 3.0, 1.0, 2.0, 0.5, 0.25]])
ALL = jnp.ones(REWARDS.shape, bool)


@pytest.mark.parametrize(
    ("spec", "method", "label", "folder"),
    [
        ("rloo", Method("rloo", None, {}, None), "rloo", "rloo"),
        ("maxpo:k=4", Method("maxpo", (4, 4), {}, None), "maxpo k=4", "maxpo_k4"),
        (
            "maxpo:k=8->1.5,learning_rate=1e-4",
            Method("maxpo", (8, 1.5), {}, 1e-4),
            "maxpo k=8->1.5",
            "maxpo_k8-1.5",
        ),
        (
            "blended:k=4,weight=0.5",
            Method("blended", (4, 4), {"weight": 0.5}, None),
            "blended k=4 weight=0.5",
            "blended_k4_weight0.5",
        ),
        (
            "grpo:epsilon=1e-4",
            Method("grpo", None, {"epsilon": 1e-4}, None),
            "grpo epsilon=0.0001",
            "grpo_epsilon0.0001",
        ),
    ],
)
def test_a_spec_says_what_a_method_is(spec, method, label, folder):
    assert parse_method(spec) == method
    assert (method.label, method.folder) == (label, folder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mxpo:k=4", "expected one of the estimators .*; got 'mxpo'"),
        ("maxpo", "expected a k, as in maxpo:k=4"),
        ("blended:weight=0.5", "expected a k, as in blended:k=4"),
        ("blended:k=4", "expected a weight, as in blended:weight=4"),
        ("blended:k=4,weight=0->1", "expected one number, or k=FIRST->LAST; got 0->1"),
        ("maxpo:4", "each name once, got '4'"),
        ("maxpo:k=4,k=8", "each name once, got 'k=8'"),
        ("maxpo:k=four", "expected a number, got 'four'"),
        ("maxpo:k=4->2->1", r"k=FIRST->LAST; got 4->2->1"),
        ("grpo:epsilon=1->2", r"expected one number, or k=FIRST->LAST; got 1->2"),
        ("rloo:k=4", "expected options among learning_rate; got 'k'"),
        ("rloo:learning_rate=0", "a learning_rate above 0, got 0"),
        ("l_statistic", "rank weights, which no spec can give"),
        ("rloo:", "each name once, got ''"),
    ],
)
def test_what_is_no_method_is_quoted(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_method(spec)
    assert repr(spec) in str(error.value)


def test_a_study_may_add_to_the_language():
    extra = {"entropy": ("sweep",)}
    method = parse_method("grpo:entropy=0.01,epsilon=1e-4", extra=extra)
    assert method == Method("grpo", None, {"epsilon": 1e-4}, None, {"entropy": 0.01})
    assert method.label == "grpo epsilon=0.0001 entropy=0.01"
    method = parse_method("maxpo:k=2,entropy=sweep", extra=extra)
    assert (method.label, method.folder) == ("maxpo k=2 entropy=sweep", "maxpo_k2_entropysweep")
    for spec, message in (
        ("grpo:entropy=all", "expected a number, got 'all'"),
        ("grpo:entropy=-1", "expected entropy of at least 0, got -1"),
        ("maxpo:k=sweep", "expected a number, got 'sweep'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_method(spec, extra=extra)
    with pytest.raises(ValueError, match="got 'entropy'"):
        parse_method("grpo:entropy=0.01")


def test_k_adapts_where_a_study_knows_its_problems():
    method = parse_method("maxpo:k=adaptive,k_max=4", adaptive=True)
    assert method == Method("maxpo", AdaptiveK(0.5, 4), {}, None)
    assert method.adapts
    assert method.label == "maxpo k=adaptive target=0.5 k_max=4"
    assert method.folder == "maxpo_kadaptive_target0.5_k_max4"
    assert (
        parse_method(method.label.replace(" ", ":", 1).replace(" ", ","), adaptive=True) == method
    )
    (method,) = parse_methods(
        ["maxpo:k=adaptive,target=0.75,learning_rate=1e-4"], group_size=9, adaptive=True
    )
    assert method == Method("maxpo", AdaptiveK(0.75, 8), {}, 1e-4)
    assert not parse_method("maxpo:k=4", adaptive=True).adapts


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maxpo:k=adaptive,target=1", "target: expected a number between 0 and 1, got 1"),
        ("maxpo:k=adaptive,k_max=0.5", "k_max: expected a finite number of at least 1, got 0.5"),
        ("maxpo:k=4,target=0.5", "expected target beside k=adaptive only"),
        ("maxpo:target=0.5,k_max=2", "expected a k, as in maxpo:k=4"),
        ("maxpo:k=adaptive->1", "expected a number, got 'adaptive'"),
        ("rloo:k=adaptive", "expected options among learning_rate; got 'k'"),
        ("rloo:target=0.5", "expected options among learning_rate; got 'target'"),
        ("maxpo:k=adaptive", r"with group_size = 8: .*N - 1 = 7.*k = 8"),
    ],
)
def test_what_is_no_adaptive_k_is_quoted(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_methods([spec], group_size=8, adaptive=True)
    assert repr(spec) in str(error.value)


def test_k_adapts_nowhere_else():
    with pytest.raises(ValueError, match="'maxpo:k=adaptive': expected a number, got 'adaptive'"):
        parse_method("maxpo:k=adaptive")
    with pytest.raises(ValueError, match="expected options among k, learning_rate; got 'target'"):
        parse_method("maxpo:target=0.5,k=4")


def test_an_adaptive_k_is_that_of_each_problem():
    method = parse_method("maxpo:k=adaptive,target=0.75,k_max=5", adaptive=True)
    rewards, rates = jnp.tile(REWARDS, (3, 1)), jnp.array([0.5, 1.0, 0.0])
    expected = estimators.maxpo(rewards, np.array([2, 1, 5]))
    found = jax.jit(method.bind(8))(rewards, 0, None, rates)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    choose = methods.choose_advantages([parse_method("rloo"), method], 8)
    chosen = choose(rewards, jnp.ones(rewards.shape, bool), 0, 1, rates)
    np.testing.assert_allclose(chosen, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="success_rate: expected one of each group"):
        method.bind(8)(rewards, 0)


def test_one_function_chooses_among_methods():
    specs = ("rloo", "maxpo:k=5->1", "blended:k=2,weight=0.5")
    choose = jax.jit(methods.choose_advantages(parse_methods(specs, group_size=6), 4))
    where = ALL.at[0, 3].set(False)
    for number, expected in enumerate(
        (
            estimators.rloo(REWARDS, where=where),
            estimators.maxpo(REWARDS, 3, where=where),
            estimators.blended(REWARDS, 2, 0.5, where=where),
        )
    ):
        np.testing.assert_allclose(choose(REWARDS, where, 2, number), expected, atol=1e-6)


def test_k_must_fit_the_group():
    parse_methods(["maxpo:k=5", "rloo", "pkpo:k=6"], group_size=6)
    with pytest.raises(ValueError, match=r"'maxpo:k=6' with group_size = 6: .*N - 1 = 5.*k = 6"):
        parse_methods(["rloo", "maxpo:k=6"], group_size=6)
    with pytest.raises(ValueError, match=r"1 <= k <= N - 1 = 5.*k = 8"):
        parse_methods(["maxpo:k=8->1"], group_size=6)
    with pytest.raises(ValueError, match="methods: expected at least one"):
        parse_methods([], group_size=6)
    with pytest.raises(ValueError, match="expected different ones, got 'maxpo k=4' twice"):
        parse_methods(["maxpo:k=4", "maxpo:k=4,learning_rate=1e-4"], group_size=6)


def test_k_goes_from_the_first_step_to_the_last():
    method = parse_method("maxpo:k=5->1")
    for step, k in ((0, 5), (4, 3), (8, 1), (20, 1)):
        found = method.bind(8)(REWARDS, jnp.int32(step), ALL)
        np.testing.assert_allclose(found, estimators.maxpo(REWARDS, k), rtol=1e-6)


def test_samples_without_a_reward_influence_nothing():
    where = ALL.at[0, 1].set(False)
    found = parse_method("maxpo:k=2").bind(8)(REWARDS, 0, where)
    rest = np.delete(REWARDS[0], 1)
    assert found[0, 1] == 0
    np.testing.assert_allclose(np.delete(found[0], 1), estimators.maxpo(rest, 2), rtol=1e-6)


DRAWN = jax.random.normal(jax.random.key(0), (2, 6))


def test_k_schedule():
    assert methods.k_schedule(4, 4, 0) == 4
    schedule = methods.k_schedule(5.0, 1.0, 8)
    assert [float(schedule(step)) for step in (0, 2, 8, 100)] == [5, 4, 1, 1]
    with pytest.raises(ValueError, match=r"expected k >= 1, got k from 2 to 0\.5"):
        methods.k_schedule(2, 0.5, 10)
    with pytest.raises(ValueError, match="at least 1 update, got 0"):
        methods.k_schedule(2, 1, 0)


def test_a_changing_k_compiles_once():
    advantages = methods.bind_estimator("maxpo", methods.k_schedule(5.0, 1.0, 4))
    compiled = jax.jit(chex.assert_max_traces(advantages, n=1))
    for step in range(6):
        expected = estimators.maxpo(DRAWN, max(5 - step, 1))
        np.testing.assert_allclose(compiled(DRAWN, jnp.int32(step)), expected, atol=3e-6)


@pytest.mark.parametrize("name", estimators.names())
def test_every_estimator_can_be_bound(name):
    needed = {"l_statistic": {"rank_weights": [0.5, 0.5]}, "blended": {"weight": 0.3}}
    options = needed.get(name, {})
    assert methods.needs_only_k(name) == (not options)
    assert methods.bind_estimator(name, 3, **options)(DRAWN, 0).shape == DRAWN.shape
    if options:
        with pytest.raises(TypeError, match=rf"{name}: expected the options .*, got \[\]"):
            methods.bind_estimator(name, 3)


def test_options_are_passed_on():
    weights = [0.0, 0.0, 1.0]
    bound = methods.bind_estimator("l_statistic", 3, rank_weights=weights)
    np.testing.assert_array_equal(bound(DRAWN, 0), estimators.l_statistic(DRAWN, weights))
    with pytest.raises(TypeError, match=r"grpo: expected options among .*epsilon.*got \['eps'\]"):
        methods.bind_estimator("grpo", 3, eps=1.0)


def test_estimators_of_binary_rewards_are_refused_for_graded_ones():
    assert {name for name, variant in VARIANTS.items() if variant.binary} == {*methods.BINARY}
    methods.check_graded(["rloo", "maxpo"], "methods", "task.binary")
    for name in methods.BINARY:
        with pytest.raises(ValueError, match=f"methods: .* as task.binary says, got {name}, which"):
            methods.check_graded(["rloo", name], "methods", "task.binary")
