"""Scores of the numbers game, by hand."""

import pytest

from maxpo.lm.tasks.countdown import LONGEST, exact_score, television_score
from maxpo.lm.tasks.text import Problem

GAME = Problem("", "", {"metadata": {"numbers": [25, 4, 3, 7, 7], "target": 100}})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("25*4", 1.0),
        (" (25 * 4) + 7 - 7\n", 1.0),
        ("25*(7-3)", 1.0),
        ("25/(7/(4*7))", 1.0),  # Exact: 7 / 28 has no float that is off by a bit.
        ("25*4+3", 0.7),
        ("25*4-7+3", 0.7),
        ("25*4-7", 0.5),
        ("25*4+7+3", 0.5),
        ("25*4-7-3", 0.5),
        ("25*4+7+4", 0.0),  # 4 stands there once.
        ("25*4+7+7", 0.0),
        ("7*7*3-25", 0.0),
        ("25+25+25+25", 0.0),
        ("100", 0.0),
        ("50*2", 0.0),
        ("25*4/(7-7)", 0.0),
        ("", 0.0),
        ("25*4=100", 0.0),
        ("25*", 0.0),
        ("-7+25*4+7", 0.0),
        ("25**4", 0.0),
        ("25.0*4", 0.0),
        ("25*4*True", 0.0),
        ("max(25*4,7)", 0.0),
        ("__import__('os')", 0.0),
        ("25*4\0", 0.0),
        ("(" * 150 + "25*4" + ")" * 150, 0.0),
        ("25*4" + " " * LONGEST + "+1", 0.0),
    ],
)
def test_scores(answer, score):
    assert television_score(GAME, answer) == score


def test_ten_is_the_end_of_what_scores():
    for value, score in ((5, 0.7), (6, 0.5), (10, 0.5), (11, 0.0)):
        near = Problem("", "", {"metadata": {"numbers": [value, 100], "target": 100}})
        assert television_score(near, f"100+{value}") == score
        assert television_score(near, f"100-{value}") == score


EXACT = Problem("", "", {"metadata": {"numbers": [8, 3, 9, 7], "target": 27}})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("8+9+7+3", 1.0),
        (" 9 + (8 - -7) + 3 \n", 1.0),
        ("-3+9+8+7+3+3", 0.0),
        ("-(3-9-7)*8/8", 0.0),
        ("8+9+7", 0.0),
        ("8+9+7+3+0", 0.0),
        ("8*9-7*3", 0.0),
        ("8+9+10", 0.0),
        ("83+9-7", 0.0),
        ("27", 0.0),
        ("", 0.0),
        ("8+9+7+3=27", 0.0),
        ("8//3", 0.0),
        ("exit()", 0.0),
    ],
)
def test_every_number_is_needed_once(answer, score):
    assert exact_score(EXACT, answer) == score


def test_the_exact_score_is_where_reasoning_gym_gives_1():
    pytest.importorskip("reasoning_gym")
    import numpy as np
    from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

    data = CountdownDataset(CountdownConfig(min_numbers=3, max_numbers=3, min_target=1, size=1))
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(600):
        numbers = rng.integers(1, 5, 3).tolist()
        first, second = rng.choice(list("+-*/"), 2)
        a, b, c = rng.permutation(numbers) if rng.random() < 0.8 else rng.integers(1, 5, 3)
        answer = (
            f"{a}{first}{b}{second}{c}" if rng.random() < 0.5 else f"{a}{first}({b}{second}{c})"
        )
        entry = {"metadata": {"numbers": numbers, "target": int(rng.integers(1, 10))}}
        expected = data.score_answer(answer, entry) == 1.0
        assert exact_score(Problem("", "", entry), answer) == expected, (answer, entry)
        right += expected
    assert right > 10
