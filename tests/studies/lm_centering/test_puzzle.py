"""Grading in the program, against a reading of the texts."""

import jax
import jax.numpy as jnp
import numpy as np

from maxpo.lm.model.prompts import Completions
from maxpo.studies.lm_centering import puzzle
from maxpo.studies.lm_centering.puzzle import TOKENIZER

DIGITS = 3


def encoded(texts):
    """Completions whose texts are padded after their end, or cut where they have none."""
    rows = [[*TOKENIZER.encode(text), TOKENIZER.eos_id, 0, 0, 0][: DIGITS + 1] for text in texts]
    tokens = jnp.asarray(rows)[None]
    return Completions(tokens, jnp.zeros(tokens.shape), tokens != TOKENIZER.pad_id)


def test_grades_are_those_of_the_texts():
    puzzles = puzzle.all_puzzles(12, 13)
    texts = ("930", "039", "444", "445", "355", "99", "9999", "9-3", "", "12=")
    right = {
        "12-5=": {"930", "039", "444"},
        "13-5=": {"930", "039", "444"},
        "12-9=": {"444"},
        "13-4=": {"930", "039", "355"},
    }
    found = {
        TOKENIZER.decode(prompt): puzzle.grade(puzzles.take(np.array([number])), encoded(texts))
        for number, prompt in enumerate(puzzles.prompts.tokens)
    }
    assert len(found) == 20
    for prompt, expected in right.items():
        grades = dict(zip(texts, found[prompt][0].tolist(), strict=True))
        assert grades == {text: float(text in expected) for text in texts}
    formed = puzzle.in_format(encoded(texts))[0].tolist()
    assert formed == [True] * 5 + [False] * 5


def test_random_answers_are_digits_and_an_end():
    tokens = puzzle.random_answers(jax.random.key(0), 200, DIGITS)
    texts = [TOKENIZER.decode(row) for row in tokens]
    assert all(len(text) == DIGITS and text.isdigit() for text in texts)
    assert set("".join(texts)) == set("0123456789")
    assert np.all(np.asarray(tokens)[:, DIGITS] == TOKENIZER.eos_id)


def test_no_puzzle_is_learned_from_and_judged():
    puzzles = puzzle.all_puzzles(10, 12)
    learned, judged = puzzle.split(puzzles, 8, seed=0)
    pairs = [
        set(zip(part.sums.tolist(), part.forbidden.tolist(), strict=True))
        for part in (learned, judged)
    ]
    assert [len(part) for part in pairs] == [22, 8]
    assert not pairs[0] & pairs[1]
