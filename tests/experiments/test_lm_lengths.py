"""The benchmark of completions of uneven lengths samples the lengths that it is given."""

import numpy as np
import pytest

from experiments import lm_lengths
from maxpo.lm.model import _blocks
from maxpo.runs import load_config, read_metrics
from maxpo.studies.speed import lm_lengths as study
from maxpo.studies.speed.lengths import log_normal_lengths

FILE = "configs/lm_lengths.py:quick"


@pytest.mark.slow
def test_quick_variant(tmp_path):
    config = load_config(FILE)
    config.new_tokens = 20
    summary = lm_lengths.train_and_evaluate(config, tmp_path)
    kinds = ("log-normal", "equal")
    rows = [f"{of}, {kind} lengths" for of in ("sampling", "update") for kind in kinds]
    assert list(summary) == rows
    for of, slow, fast in (
        ("sampling", "single loop", "blocks"),
        ("update", "update with padding", "packed update"),
    ):
        assert summary[f"{of}, equal lengths"]["mean length"] == 20
        for kind in kinds:
            row = summary[f"{of}, {kind} lengths"]
            assert row["ratio"] == row[f"{fast}, tokens/s"] / row[f"{slow}, tokens/s"] > 0
    # The last token of a sample predicts nothing.
    lengths = study.given_lengths(config)["log-normal"]
    padding = 100 * (1 - (lengths - 1).sum() / (lengths.size * 19))
    row = summary["update, log-normal lengths"]
    assert row["update with padding, % padding"] == pytest.approx(padding)
    assert row["packed update, % padding"] < min(25, padding)
    assert summary["update, equal lengths"]["packed update, % padding"] == 0
    assert len(read_metrics(tmp_path)) == 8
    assert lm_lengths.train_and_evaluate(config, tmp_path) == summary


@pytest.mark.slow
def test_completions_have_the_given_lengths_both_ways(monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK", 8)
    config = load_config(FILE)
    config.new_tokens, config.lengths.median = 20, 0.4
    lengths = study.given_lengths(config)
    assert lengths["log-normal"].min() < 9 < 16 < lengths["log-normal"].max()
    for (name, _), call in study.sampling_calls(config).items():
        np.testing.assert_array_equal(call().mask.sum(axis=-1), lengths[name])


def test_lengths_are_log_normal_up_to_the_limit():
    rng = np.random.default_rng(0)
    lengths = log_normal_lengths(rng, 100, 400, 1000, median=0.2, sigma=0.6)
    assert lengths.shape == (100, 400)
    assert lengths.min() >= 1
    # P(median exp(sigma z) > limit) = P(z > log(5) / 0.6) = 0.00366.
    assert np.mean(lengths == 1000) == pytest.approx(0.00366, abs=4 * np.sqrt(0.00366 / 40_000))
    below = np.log(lengths[lengths < 1000] / 200)
    # Four standard errors of a median and of a standard deviation; the cut takes 0.4% of a tail.
    assert np.median(below) == pytest.approx(0, abs=4 * 1.2533 * 0.6 / 200 + 0.003)
    assert below.std() == pytest.approx(0.6, abs=4 * 0.6 / np.sqrt(80_000) + 0.01)
    assert (log_normal_lengths(rng, 2, 3, 10, median=0.5, sigma=0.0) == 5).all()
    assert (log_normal_lengths(rng, 2, 3, 10, median=0.01, sigma=0.0) == 1).all()
