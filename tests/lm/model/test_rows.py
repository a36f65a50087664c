"""Which rows samples lie in, and what is moved where, on the host and in arrays."""

import numpy as np
import pytest

from maxpo.lm.model import _rows


def alive_of(rows, samples):
    """`[R, W]`: True at these numbers of samples, of all shards."""
    shards = np.arange(len(rows.places))[:, None, None] * rows.total
    found = np.isin(rows.places + shards, samples) & (rows.places < rows.total)
    return found.reshape(-1, rows.places.shape[-1])


def test_samples_of_a_whole_batch_lie_in_their_groups():
    rows = _rows.of_groups(4, 3, shards=2)
    np.testing.assert_array_equal(rows.places, np.arange(6).reshape(1, 2, 3).repeat(2, axis=0))


@pytest.mark.parametrize(
    ("samples", "prompt", "is_moved"),
    [
        (range(14), 1, False),  # 14 of 16 samples need 16 rows.
        (range(8), 1, True),
        # Cost of a step: 4 (S + 4 * 1256) of 4 groups, 8 (S + 1256) of 8 samples.
        (range(8), 2000, False),
        (range(4), 2000, True),
    ],
)
def test_a_move_has_to_pay(samples, prompt, is_moved):
    rows = _rows.of_groups(4, 4, shards=1)
    found = _rows.move(rows, alive_of(rows, samples), prompt=prompt, room=1000)
    assert (found is not None) == is_moved


@pytest.mark.parametrize("shards", [1, 2])
def test_every_sample_finds_its_place_and_its_prompt(shards):
    """Random ends, move after move: arrays of numbers of samples and prompts stay with them."""
    rng = np.random.default_rng(0)
    P, N = 8, 6
    rows = _rows.of_groups(P, N, shards)
    samples, prompts, alive = np.arange(P * N).reshape(P, N), np.arange(P), np.arange(P * N)
    counts = [rows.places.size]
    for _ in range(5):
        alive = np.sort(rng.choice(alive, len(alive) * 3 // 5, replace=False))
        found = _rows.move(rows, alive_of(rows, alive), prompt=10, room=100)
        if found is None:
            continue
        samples = np.asarray(_rows.taken(samples, found.samples_from, leading=2))
        prompts = np.asarray(_rows.taken(prompts, found.rows_from, leading=1))
        rows = found.rows
        counts.append(rows.places.size)
        numbers, kept = samples[:, 0], ~found.is_empty[:, 0]
        assert sorted(numbers[kept]) == alive.tolist()
        np.testing.assert_array_equal(numbers // N, prompts)
        # Those of a shard stay in it.
        by_shard = numbers.reshape(shards, -1)
        np.testing.assert_array_equal(
            by_shard // rows.total, np.repeat(np.arange(shards)[:, None], by_shard.shape[1], axis=1)
        )
        places = np.where(kept.reshape(by_shard.shape), by_shard % rows.total, rows.total)
        np.testing.assert_array_equal(rows.flat, places)
        whole = np.full((P, N, 1), -1, np.int32)
        whole = _rows.put_back(whole, samples[..., None].astype(np.int32), rows.flat)
        expected = np.where(np.isin(np.arange(P * N), alive), np.arange(P * N), -1)
        np.testing.assert_array_equal(whole.ravel(), expected)
    assert counts == {1: [48, 24, 12, 6], 2: [48, 24, 12]}[shards]


def test_few_numbers_of_rows():
    """Whatever goes on, rows are 32, 16, 8 or 4."""
    rows = _rows.of_groups(4, 8, shards=1)
    counts = set()
    for alive in range(1, 17):
        found = _rows.move(rows, alive_of(rows, range(alive)), prompt=1, room=1000)
        assert alive <= found.rows.places.size < max(2 * alive, 5)
        counts.add(found.rows.places.size)
    assert counts == {16, 8, 4}


def test_the_next_look_is_at_half_the_samples():
    rows = _rows.of_groups(4, 8, shards=1)
    assert _rows.enough(rows, 32) == 16
    assert _rows.enough(rows, 10) == 5
    assert _rows.enough(_rows.of_groups(2, 2, shards=1), 4) == 0  # So few are never moved.
