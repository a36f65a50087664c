"""Scores of the numbers game, by hand."""

import pytest

from maxpo.tasks.countdown import LONGEST, television_score
from maxpo.tasks.text import Problem

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
