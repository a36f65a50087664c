"""The study of centering, shrunk, through its binary's own function."""

import json

import numpy as np
import pytest

from experiments import lm_centering
from maxpo.runs import load_config, read_metrics
from maxpo.studies.jobs import by_section
from maxpo.studies.lm_centering import sweep

pytestmark = pytest.mark.slow  # Whole studies.

RATE = 1e-2


@pytest.fixture(scope="module")
def config():
    config = load_config("configs/lm_centering.py:quick")
    config.update(samples=4, evaluate_every=2, eval_ks=(1, 2), fine_tuning=(3,), variance_prompts=2)
    config.learning_rates = (RATE,)
    config.puzzle.update(digits=2, held_out=4)
    config.model.update(hidden=8, layers=1, mlp=8)
    config.sft.batch_size = 4
    config.rl.update(steps=4, group_size=4)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """The folder of a run that was stopped between its jobs, and its summary."""
    folder = tmp_path_factory.mktemp("lm_centering")

    class InterruptedRunError(Exception):
        pass

    def first_alone(config, make=sweep.make_jobs):
        def interrupt(_):
            raise InterruptedRunError

        return [make(config)[0], interrupt]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "make_jobs", first_alone)
        with pytest.raises(InterruptedRunError):
            lm_centering.train_and_evaluate(config, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    summary = lm_centering.train_and_evaluate(config, folder)
    assert (folder / "metrics.jsonl").read_bytes().startswith(before)
    return folder, summary


def test_a_run_ends_with_a_summary_and_a_figure(run, config):
    folder, summary = run
    assert json.loads((folder / "summary.json").read_text()) == summary
    labels = ["maxpo k=2", "pkpo_loo_minus_one k=2"]
    table = summary["table"]
    assert list(table) == [f"fine-tuning=3 {label}" for label in labels]
    assert list(summary) == [*table, "variance", "table"]
    for row in table.values():
        assert row["learning_rate"] == RATE
        assert np.isfinite([value for name, value in row.items() if "updates" not in name]).all()
    assert (folder / "lm_centering.png").stat().st_size > 10_000
    assert lm_centering.train_and_evaluate(config, folder) == summary


def test_variances_at_the_start_are_reported(run, config, capsys):
    folder, summary = run
    start = summary["variance"]["fine-tuning=3"]
    assert list(start["methods"]) == ["maxpo k=2", "pkpo_loo_minus_one k=2"]
    drawn = sum(row["samples"] for row in start["scores"].values())
    assert drawn == config.seeds * config.variance_prompts * 2 * config.rl.group_size
    lm_centering.train_and_evaluate(config, folder)
    printed = capsys.readouterr().out
    assert "maxpo_ratio" in printed
    assert "fine-tuning=3 out_of_format" in printed


def test_methods_share_their_start(run):
    rows = by_section(read_metrics(run[0]))[None]
    maxpo, other = (np.asarray(row["pass_at_k"]) for row in rows)
    assert maxpo.shape == (3, 4, 2)  # Evaluations, seeds, ks.
    np.testing.assert_array_equal(maxpo[0], other[0])
