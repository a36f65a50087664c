"""Widths of prompts against brute force, and which problems a step of each width takes."""

import itertools
from typing import NamedTuple

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from maxpo.lm.model.prompts import Completions, Prompts
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import CharTokenizer
from maxpo.lm.training.evaluation import Judge
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.problems import (
    EncodedProblems,
    batch_of_step,
    choose_widths,
    encode,
    shared_prompts,
)
from maxpo.lm.training.rollouts import Sampler

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz0123456789:")


def positions(lengths, widths):
    """What prompts take that are each padded to the next width."""
    return sum(min(width for width in widths if width >= length) for length in lengths)


def all_choices(lengths, least):
    """All widths that each have `least` prompts, by how many they are: the fewest first."""
    *others, longest = sorted(set(lengths))
    for count in range(len(others) + 1):
        for chosen in itertools.combinations(others, count):
            widths = (*chosen, longest)
            below = np.searchsorted(sorted(lengths), (0, *widths), side="right")
            if np.all(np.diff(below) >= min(least, len(lengths))):
                yield widths


@hypothesis.given(
    lengths=strategies.lists(strategies.integers(1, 9), min_size=1, max_size=14),
    eighths=strategies.integers(0, 4),
    least=strategies.integers(1, 6),
)
def test_widths_are_the_best_of_all_choices(lengths, eighths, least):
    padding = eighths / 8  # No rounding: 1 - padding and its products are exact.
    found = choose_widths(lengths, padding=padding, least=least)
    costs = {widths: positions(lengths, widths) for widths in all_choices(lengths, least)}
    assert found in costs
    enough = [w for w, cost in costs.items() if sum(lengths) >= (1 - padding) * cost]
    # Where no choice has so little padding, the one with the least of all.
    count = min(map(len, enough or [w for w in costs if costs[w] == min(costs.values())]))
    assert len(found) == count
    assert costs[found] == min(cost for widths, cost in costs.items() if len(widths) == count)


class Lengths(NamedTuple):
    """Prompts of log-normal lengths, as an `EncodedProblems` has them."""

    encoded: EncodedProblems
    texts: list[str]


def log_normal(sigma, seed, count, *, batch):
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(60), sigma, count)).astype(int), 1, 600)
    texts = [f"{number}:".ljust(length, "x")[:length] for number, length in enumerate(lengths)]
    encoded, _ = encode([Problem(text) for text in texts], [], TOKENIZER, batch=batch)
    return Lengths(encoded, texts)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.8, 1.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_few_positions_of_a_run_are_padding(sigma, seed):
    encoded, _ = log_normal(sigma, seed, 400, batch=8)
    real = taken = 0
    for step in range(1, 301):
        numbers = batch_of_step(seed, step, 8, 400, encoded.buckets)
        mask = encoded.take(numbers).prompts.mask
        real, taken = real + mask.sum(), taken + mask.size
    assert 1 - real / taken <= 0.15
    # All to one width, the narrowest of these would be over it as well.
    whole = 1 - encoded.prompts.mask.mean()
    assert whole > 0.15


def fibonacci_terms(number):
    """How many Fibonacci numbers add up to a number, the largest first."""
    terms = [1, 2]
    while terms[-1] < number:
        terms.append(terms[-1] + terms[-2])
    count = 0
    for term in reversed(terms):
        if term <= number:
            number, count = number - term, count + 1
    return count


@pytest.mark.parametrize("steps", [987, 1234])
def test_problems_of_all_widths_are_seen_equally_often(steps):
    """Within the bound of Denjoy and Koksma.

    Of as many multiples of the golden ratio, mod 1, as a Fibonacci number says, an interval has as
    many as it is long, and at most 2 more or less (the variation of its indicator), wherever they
    begin. So of n, a sum of z Fibonacci numbers, 2 z more or less. Where a width has m of P
    problems, its steps are therefore n m / P, and 2 z more or less; each takes the next problems of
    its epochs, in which two problems are never more than one time apart.
    """
    size, counts = 4, {0: 40, 1: 7, 2: 53}
    buckets = np.random.default_rng(0).permutation(np.repeat(list(counts), list(counts.values())))
    seen = np.zeros(100)
    for step in range(1, steps + 1):
        numbers = batch_of_step(3, step, size, 100, buckets)
        assert len(set(buckets[numbers])) == 1
        np.add.at(seen, numbers, 1)
    assert seen.sum() == steps * size
    for bucket, members in counts.items():
        found = seen[buckets == bucket]
        assert np.ptp(found) <= 1
        bound = 1 + 2 * fibonacci_terms(steps) * size / members
        np.testing.assert_allclose(found, steps * size / 100, atol=bound)
    assert fibonacci_terms(987) == 1
    assert fibonacci_terms(1234) > 1


def test_a_width_has_epochs_of_all_its_problems():
    buckets = np.array([0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1])
    streams = {0: [], 1: []}
    for step in range(1, 40):
        numbers = batch_of_step(7, step, 5, 12, buckets)
        streams[buckets[numbers[0]]] += numbers.tolist()
    for bucket, stream in streams.items():
        members = np.flatnonzero(buckets == bucket).tolist()
        epochs = [stream[i : i + len(members)] for i in range(0, len(stream), len(members))]
        assert len(epochs) > 10
        assert all(sorted(epoch) == members for epoch in epochs[:-1])
        assert len({tuple(epoch) for epoch in epochs[:-1]}) > 1


@pytest.mark.parametrize("size", [3, 12, 20])
def test_with_one_width_steps_take_one_permutation_after_the_other(size):
    epochs = [np.random.default_rng((5, epoch)).permutation(12) for epoch in range(20)]
    stream = np.concatenate(epochs)
    for step in range(1, 12):
        expected = stream[(step - 1) * size : step * size]
        for buckets in (None, np.full(12, 2)):
            np.testing.assert_array_equal(batch_of_step(5, step, size, 12, buckets), expected)


def test_take_crops_padding_and_nothing_else():
    encoded, texts = log_normal(0.8, 2, 60, batch=4)
    assert len(encoded.widths) > 2
    rng = np.random.default_rng(0)
    for _ in range(50):
        numbers = rng.choice(60, rng.integers(1, 6))
        taken = encoded.take(numbers)
        longest = max(len(texts[i]) for i in numbers)
        width = min(width for width in encoded.widths if width >= longest)
        assert taken.prompts.tokens.shape == taken.prompts.mask.shape == (len(numbers), width)
        rows = zip(*taken.prompts, numbers, taken.problems, strict=True)
        for tokens, mask, number, problem in rows:
            assert problem.prompt == texts[number]
            assert TOKENIZER.decode(tokens[mask]) == texts[number]
            assert mask.tolist() == sorted(mask.tolist())  # Padded on the left.
        assert taken.widths == encoded.widths
        # Once more: what is taken from it is as wide as the rest needs.
        again = taken.take(np.array([0]))
        np.testing.assert_array_equal(again.prompts.tokens, encoded.take(numbers[:1]).prompts[0])


def test_held_out_prompts_may_be_longer_than_all_to_train_on():
    train, held_out = encode(
        [Problem("ab"), Problem("abc")], [Problem("a"), Problem("abcdefgh")], TOKENIZER
    )
    assert train.widths == held_out.widths
    assert train.widths[-1] == 8
    assert train.take(np.arange(2)).prompts.tokens.shape == (2, 3)
    assert held_out.take(np.array([0])).prompts.tokens.shape[1] < 8
    assert shared_prompts(train.problems, [Problem("abc", "x"), Problem("b")]) == 1


@pytest.mark.parametrize(("longest", "widths"), [(4 + 16, (20,)), (4 + 17, (4, 21))])
def test_nothing_is_compiled_for_a_little_padding(longest, widths):
    train, _ = encode([Problem("a" * n) for n in (4, longest) * 3], [], TOKENIZER, batch=3)
    assert train.widths == widths


def test_a_prompt_without_a_token_is_named():
    with pytest.raises(ValueError, match=r"expected prompts of at least one token, .* number 2"):
        encode([Problem("ab"), Problem("a")], [Problem("")], TOKENIZER)


def test_each_held_out_problem_gets_its_own_scores():
    lengths = [9, 2, 30, 3, 29, 2, 10, 3, 28, 9, 2]  # Of three widths, in no order.
    problems = [Problem(f"{i:02}".ljust(n, ":")[:n]) for i, n in enumerate(lengths)]
    encoded, _ = encode(problems, [], TOKENIZER, batch=2)
    assert len(encoded.widths) == 3
    shapes = []

    def draw(params, prompts, key):
        """Two completions of each: the number of the problem, and the same with an x."""
        shapes.append(prompts.tokens.shape)
        tokens = np.full((len(prompts.tokens), 2, 3), TOKENIZER.eos_id, np.int32)
        for row, (ids, mask) in enumerate(zip(*prompts, strict=True)):
            tokens[row, :, :2] = ids[mask][:2]
        tokens[:, 1, 2] = TOKENIZER.encode("x")[0]
        found = tokens, np.zeros(tokens.shape, np.float32), np.ones(tokens.shape, bool)
        return lambda: Completions(*found)

    def score(problem, text):
        number = int(text[:2])
        assert problem == problems[number]
        if number in (2, 7):
            raise LookupError(f"no score of {text}")
        return number + 100 * ("x" in text)

    sampler = Sampler(draw, TOKENIZER, RewardFunction(score))
    judge = Judge(sampler, encoded, jax.random.key(0), 3, Grading(5.0, False))
    judged = judge(None, 1)
    assert judged.completions.tokens.shape == (11, 2, 3)
    expected = [[i, i + 100] if i not in (2, 7) else [0, 0] for i in range(11)]
    assert judged.scores.rewards.tolist() == expected
    assert [i for i, row in enumerate(judged.scores.valid) if not row.all()] == [2, 7]
    assert set(judged.scores.messages) == {(2, 0), (2, 1), (7, 0), (7, 1)}
    for (row, column), message in judged.scores.messages.items():
        assert f"no score of {row:02}{'x' * column}\n" in message
    tokens, _, mask = judged.completions
    assert [sampler.text(tokens[i, 1], mask[i, 1]) for i in range(11)] == [
        f"{i:02}x" for i in range(11)
    ]
    # Four batches of 3; those of short prompts are not padded to the longest.
    assert len(shapes) == 4
    assert shapes[0][1] < 9
    # The last step's is not drawn again.
    assert judge(None, 1) is judged
    assert len(shapes) == 4
    judge(None, 2)
    assert len(shapes) == 8


def test_prompts_are_arrays_of_the_host():
    encoded, _ = encode([Problem("ab")], [], TOKENIZER)
    assert isinstance(encoded.prompts, Prompts)
    assert isinstance(encoded.take(np.array([0])).prompts.tokens, np.ndarray)
