"""No number of a config may be a surprise: each is bounded, or known to be free."""

import json
import math

import pytest
from ml_collections import ConfigDict

from experiments import lm_scaling, results, step_sizes, tunix_lm
from maxpo import parallel
from maxpo.lm.training.settings import make_settings
from maxpo.runs import load_config
from maxpo.runs._config import flatten
from maxpo.studies import bandit, maze
from maxpo.studies.centering import cells as centering
from maxpo.studies.lm_centering import sweep as lm_centering
from maxpo.studies.reliability import study as reliability
from maxpo.studies.speed import (
    checkpoint_speed,
    estimator_speed,
    lm_lengths,
    lm_speed,
    maze_speed,
    step_speed,
)
from maxpo.studies.variance import baseline_weight, gradient_variance


def check_maze_speed(config):
    maze_speed.check_config(config)
    maze_speed.make_environments(config)


def check_by_beginning(binary):
    """Where the check is a part of the binary: what it refuses, it refuses without a folder."""

    def check(config):
        binary.train_and_evaluate(config, "nowhere://")

    return check


def check_lm(config):
    parallel.make_mesh(config.mesh.data, config.mesh.model)
    make_settings(config)


# May be negative.
FREE = {
    *("task.mean", "task.values"),
    *("base.logit_tilt", "sweep.logit_tilt", "toy.theta", "toy.thetas"),
}
CHECKS = {
    "bandit": bandit.check_config,
    "bandit:anneal": bandit.check_config,
    "bandit:square": bandit.check_config,
    "baseline_weight:quick": baseline_weight.check_config,
    "centering": centering.check_config,
    "centering:quick": centering.check_config,
    "chaos": reliability.check_config,
    "checkpoint_speed:quick": checkpoint_speed.check_config,
    "estimator_speed": estimator_speed.check_config,
    "gradient_variance:quick": gradient_variance.check_config,
    "lm_centering": lm_centering.check_config,
    "lm_lengths": lm_lengths.check_config,
    "lm_scaling:quick": check_by_beginning(lm_scaling),
    "lm_speed:quick": lm_speed.check_config,
    "maze": maze.check_config,
    "maze:full": maze.check_config,
    "maze_speed": check_maze_speed,
    "step_sizes": check_by_beginning(step_sizes),
    "step_speed:quick": step_speed.check_config,
    "tunix_lm": tunix_lm.check_config,
    "lm:jsonl": check_lm,
}


def numbers(config):
    """Names of all fields that hold numbers, alone or in tuples."""
    for name, value in flatten(config).items():
        first = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(first, int | float) and not isinstance(first, bool):
            yield name, value, isinstance(first, float)


def set_field(config, name, value):
    *path, field = name.split(".")
    for part in path:
        config = config[part]
    config[field] = value


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = [json.dumps({"question": f"{i}+1=", "answer": str(i)}) for i in range(8)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return str(folder / "a.jsonl")


@pytest.mark.parametrize("spec", CHECKS)
def test_every_number_is_checked_before_any_work(spec, data):
    if spec == "maze_speed":
        pytest.importorskip("xminigrid")
    name, _, variant = spec.partition(":")

    def load() -> ConfigDict:
        config = load_config(f"configs/{name}.py{variant and ':' + variant}")
        if spec == "lm:jsonl":
            config.task.update(train_path=data, held_out_path=data)
            config.rl.update(max_new_tokens=3)
        return config

    unnoticed = []
    for field, value, is_float in numbers(load()):
        wrong = [math.nan, -math.inf] if is_float else []
        if field not in FREE:
            wrong.append(-1.0 if is_float else -1)
        for number in wrong:
            config = load()
            set_field(config, field, (*value[:-1], number) if isinstance(value, tuple) else number)
            try:
                CHECKS[spec](config)
            except ValueError as error:
                if any(part in str(error) for part in field.split(".")):
                    continue
                unnoticed.append((field, number, str(error)))
            else:
                unnoticed.append((field, number, "no error"))
    assert unnoticed == []


@pytest.mark.parametrize(
    ("spec", "fields", "message"),
    [
        ("maze", {"eval_k": 16, "evaluation.curve_samples": 8}, "evaluation.curve_samples = 8"),
        ("lm_speed:quick", {"peak.flops": 1e12}, r"expected both, or 0 for both, got 1e\+12 and 0"),
        ("lm_speed:quick", {"peak.bandwidth": 1e12}, "expected both, or 0 for both"),
        ("bandit", {"optimizer": "linear_schedule"}, "expected a name of optax"),
        ("bandit", {"optimizer": "losses"}, "expected a name of optax"),
        ("bandit:bernoulli", {"task.law_parameter": 1.5}, "at most 1, got 1.5"),
        ("bandit", {"learning_rate": math.inf}, "learning_rate: expected more than 0, got inf"),
        ("gradient_variance", {"sweep.success_rate": (0.5, 1.5)}, "at most 1, got 1.5"),
        ("baseline_weight", {"logit_noises": (1.0, math.nan)}, "logit_noises: expected at least 0"),
        ("estimator_speed", {"scaling_sizes": (8,)}, "2 <= k <= 7"),
        (
            "estimator_speed",
            {"scaling_rewards": 2**10},
            "scaling_rewards: expected at least 1310",
        ),
        ("step_sizes", {"bandits": ("default", "default")}, "bandits: expected different variants"),
        ("lm_centering", {"rl.steps": 150}, "multiple of evaluate_every = 100, got 150"),
        ("lm_centering", {"puzzle.most": 13}, "a number from 14 to 99, got 13"),
        ("lm_centering", {"puzzle.held_out": 170}, "less than all 170, got 170"),
        ("lm_centering", {"samples": 4}, "eval_ks: expected at most samples = 4"),
        ("lm_centering", {"eval_k": 3}, "eval_k: expected one of"),
        ("lm_centering", {"methods": ("rloo",)}, "expected maxpo first, got 'rloo'"),
        ("lm_centering", {"learning_rates": (0.1, 0.1)}, "learning_rates: expected different"),
        ("tunix_lm", {"odds": (1.5, -0.5)}, "odds: expected at least 0, got -0.5"),
    ],
)
def test_a_mistake_is_named(spec, fields, message):
    config = load_config(f"configs/{spec.replace(':', '.py:')}" + ".py" * (":" not in spec))
    config.update_from_flattened_dict(fields)
    check = {**CHECKS, "bandit:bernoulli": bandit.check_config}.get(spec) or CHECKS[spec + ":quick"]
    with pytest.raises(ValueError, match=message):
        check(config)


def test_results_refuses_what_is_no_study(tmp_path):
    config = load_config("configs/results.py")
    for spec in ("bandits", "results", "os"):
        config.studies = ("bandit:quick", spec)
        with pytest.raises(ValueError, match=rf"studies: expected some of .*; got '{spec}'"):
            results.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
