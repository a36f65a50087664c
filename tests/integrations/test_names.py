"""docs/names.md: every field of the trainer, and no name that another trainer does not have."""

import re
from pathlib import Path
from typing import get_args

import pytest

from maxpo.losses import LossAggregation
from maxpo.runs import load_config

PAGE = Path(__file__).parents[2] / "docs" / "names.md"
# The values of one field have a table of their own.
AGGREGATIONS = get_args(LossAggregation)
ROW = re.compile(r"^\| `([\w.]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", re.M)


def rows():
    for part in PAGE.read_text().split("\n## "):
        prefix = "rl." if "| `rl.` |" in part else ""
        for name, *others in ROW.findall(part):
            if name not in AGGREGATIONS and not name.startswith("rl."):
                yield prefix + name, others


def fields():
    found = set()
    for variant in ("default", "jsonl"):
        for name, value in load_config(f"configs/lm.py:{variant}").items():
            nested = hasattr(value, "items")
            found |= {f"{name}.{inner}" for inner in value} if nested else {name}
        found -= {"model.lora"}  # The one part of a part.
        found |= {f"model.lora.{name}" for name in load_config("configs/lm.py").model.lora}
    return found


def test_every_field_has_a_row_and_every_row_a_field():
    named = [name for name, _ in rows()]
    assert len(named) == len(set(named))
    assert set(named) == fields()


def names_in(column):
    return {found for _, others in rows() for found in re.findall(r"`([^`]+)`", others[column])}


def test_trl_has_the_names_of_its_column():
    grpo = pytest.importorskip("trl.trainer.grpo_config")
    assert names_in(0) <= set(grpo.GRPOConfig.__dataclass_fields__)


def test_tunix_has_the_names_of_its_column():
    pytest.importorskip("tunix")
    from tunix.rl import rl_cluster
    from tunix.rl.grpo import dapo_learner, grpo_learner
    from tunix.rl.rollout import base_rollout

    known = {"data_shuffle_seed"}  # An argument of the learner.
    for config in (
        dapo_learner.DAPOConfig,
        grpo_learner.GRPOConfig,
        rl_cluster.RLTrainingConfig,
        rl_cluster.ClusterConfig,
        base_rollout.RolloutConfig,
    ):
        known |= set(config.__dataclass_fields__)
    assert names_in(2) <= known
