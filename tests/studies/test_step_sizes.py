"""The sweep trains what the bandit study trains, and chooses without looking at what it reports."""

import numpy as np

from maxpo.runs import load_config
from maxpo.studies import bandit, step_sizes


def test_every_step_size_trains_as_on_its_own():
    config = load_config("configs/bandit.py")
    config.update(seeds=3, updates=4, evaluate_every=4, methods=("maxpo:k=4",))
    config.task.num_contexts = 2
    found = step_sizes.final_objectives(config, (0.5, 4.0))["maxpo k=4"]
    trainer = bandit.make_trainer(config)
    state = trainer.init(trainer.keys)
    for rate, row in zip((0.5, 4.0), found, strict=True):
        after = trainer.advance(0, rate, trainer.keys, state)
        expected = trainer.evaluate(0, trainer.keys, after)["max_at_k"]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_every_panel_has_the_k_of_its_own_law():
    objectives = {law: {"maxpo": np.ones((2, 4))} for law in ("gaussian", "bernoulli")}
    figure = step_sizes.step_size_figure(
        objectives, (1.0, 2.0), {"gaussian": 4.0, "bernoulli": 8.0}
    )
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "gaussian: final max@4",
        "bernoulli: final max@8",
    ]


def test_compare():
    rates = (1.0, 2.0, 4.0)
    objectives = {
        "rloo": np.array([[1.0, 3.0, 9.0, 9.0], [2.0, 4.0, 5.0, 7.0], [np.nan] * 4]),
        "maxpo": np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0]]),
    }
    rows = step_sizes.compare(objectives, rates, common=1.0)
    # The first half of the seeds prefers 2, although the second half does not.
    assert rows["rloo"]["best_step_size"] == 2.0
    assert (rows["rloo"]["best"], rows["rloo"]["best_sem"]) == (6.0, 1.0)
    assert rows["rloo"]["common"] == 5.5
    assert rows["rloo"]["minus_maxpo"] == 4.5
    assert rows["maxpo"]["minus_maxpo"] == rows["maxpo"]["minus_maxpo_sem"] == 0.0
