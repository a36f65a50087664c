"""Verifiers by name: which there are, and what the exact one takes for the same text."""

import pickle

import pytest

from maxpo.lm.tasks.text import Problem, is_text_only
from maxpo.lm.tasks.verifiers import (
    BUILT_IN,
    check_answer,
    comparing,
    exact_verifier,
    find_verifier,
)


@pytest.mark.parametrize(
    ("completion", "is_right"),
    [
        ("naïve Bayes", True),
        ("  naïve\n\t Bayes \u00a0", True),
        ("nai\u0308ve Bayes", True),  # An i and its diaeresis, two characters.
        ("naive Bayes", False),
        ("Naïve Bayes", False),
        ("naïveBayes", False),
        ("naïve Bayes.", False),
        ("", False),
    ],
)
def test_exact_compares_texts_but_for_white_space(completion, is_right):
    for answer in ("naïve Bayes", " nai\u0308ve  Bayes\n"):
        assert exact_verifier(Problem("", answer), completion) == float(is_right)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_name_is_of_a_function_that_workers_can_import(name):
    verifier = find_verifier(name)
    assert pickle.loads(pickle.dumps(verifier)) is verifier
    assert comparing(verifier) == {name: BUILT_IN[name]}


def test_exact_and_numeric_share_processes():
    assert is_text_only(find_verifier("exact"))
    assert is_text_only(find_verifier("numeric"))


def test_a_name_that_is_none_lists_all():
    expected = "'scorer' or 'exact' or 'numeric' or 'math' or 'module:function', got 'same'"
    with pytest.raises(ValueError, match=f"verifier: expected {expected}"):
        find_verifier("same", scorer=exact_verifier)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("exact", " \n", "the exact verifier expected a text that is not blank, got ' "),
        ("numeric", "x", "the numeric verifier expected a number and nothing else, got 'x'"),
    ],
)
def test_an_answer_that_cannot_be_compared_with(name, answer, message):
    with pytest.raises(ValueError, match=f"here: {message}"):
        check_answer(find_verifier(name), Problem("", answer), "here")
    check_answer(find_verifier(name), Problem("", "7"), "here")


def test_a_verifier_of_ones_own_takes_any_answer():
    verifier = find_verifier("maxpo.lm.tasks.countdown:exact_score")
    assert comparing(verifier) == {}
    check_answer(verifier, Problem("", ""), "here")
