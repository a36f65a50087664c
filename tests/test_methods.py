"""What a method's string means, and what is no method."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxpo import estimators
from maxpo.methods import Method, parse_method, parse_methods

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


def test_k_must_fit_the_group():
    parse_methods(["maxpo:k=5", "rloo", "pkpo:k=6"], group_size=6)
    with pytest.raises(ValueError, match=r"'maxpo:k=6' with group_size = 6: .*N - 1 = 5.*k = 6"):
        parse_methods(["rloo", "maxpo:k=6"], group_size=6)
    with pytest.raises(ValueError, match=r"1 <= k <= N - 1 = 5.*k = 8"):
        parse_methods(["maxpo:k=8->1"], group_size=6)
    with pytest.raises(ValueError, match="expected different ones, got 'maxpo k=4' twice"):
        parse_methods(["maxpo:k=4", "maxpo:k=4,learning_rate=1e-4"], group_size=6)


def test_k_goes_from_the_first_step_to_the_last():
    method = parse_method("maxpo:k=5->1")
    for step, k in ((0, 5), (4, 3), (8, 1), (20, 1)):
        found = method.advantages(REWARDS, ALL, jnp.int32(step), 8)
        np.testing.assert_allclose(found, estimators.maxpo(REWARDS, k), rtol=1e-6)


def test_samples_without_a_reward_influence_nothing():
    where = ALL.at[0, 1].set(False)
    found = parse_method("maxpo:k=2").advantages(REWARDS, where, jnp.int32(0), 8)
    rest = np.delete(REWARDS[0], 1)
    assert found[0, 1] == 0
    np.testing.assert_allclose(np.delete(found[0], 1), estimators.maxpo(rest, 2), rtol=1e-6)
