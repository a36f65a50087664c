"""verl: the function as verl's trainer calls it, and, where verl is installed, its own registry."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maxpo import estimators

torch = pytest.importorskip("torch")

from maxpo.integrations.verl import maxpo_advantage  # noqa: E402

# Of verl's dependencies (ray, tensordict), when the module above finds verl.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(ray|tensordict|verl).*")


def batch(sizes, seed=0, tokens=5):
    """Rewards on the last token of each response, of groups of these sizes, shuffled."""
    rng = np.random.default_rng(seed)
    index = rng.permutation(np.repeat([f"uid-{i}" for i in range(len(sizes))], sizes))
    lengths = rng.integers(1, tokens + 1, len(index))
    mask = torch.as_tensor(np.arange(tokens) < lengths[:, None]).float()
    rewards = np.round(rng.normal(size=len(index)), 1).astype(np.float32)
    token_rewards = torch.zeros(len(index), tokens)
    token_rewards[torch.arange(len(index)), torch.as_tensor(lengths - 1)] = torch.as_tensor(rewards)
    return token_rewards, mask, index.astype(object), rewards


def call(sizes, k, **options):
    token_rewards, mask, index, _ = batch(sizes)
    arguments = {
        "token_level_rewards": token_rewards,
        "response_mask": mask,
        "index": index,
        "config": {"maxpo_k": k},
    }
    return maxpo_advantage(**(arguments | options))


@pytest.mark.parametrize("sizes", [[4, 4, 4], [6, 3, 4, 1, 2], [5]])
def test_equals_maxpo_in_each_group(sizes):
    token_rewards, mask, index, rewards = batch(sizes)
    advantages, returns = call(sizes, 2)
    assert advantages is returns
    assert advantages.dtype == torch.float32
    expected = np.zeros(len(index))
    for prompt in set(index):
        members = index == prompt
        if members.sum() > 2:  # k + 1 are needed.
            expected[members] = estimators.maxpo(rewards[members], 2)
    np.testing.assert_allclose(advantages, expected[:, None] * mask.numpy(), atol=1e-5)
    assert token_rewards.sum(-1).numpy() == pytest.approx(rewards)  # The input stays as it is.


def test_outputs_of_a_session_are_one_sample():
    # By hand: sessions [1, 0, 0] at k = 2 are worth 2 and -1, -1.
    arguments = {
        "token_level_rewards": torch.tensor([[1.0], [1.0], [0.0], [0.0]]),
        "response_mask": torch.ones(4, 1),
        "index": np.array(["u_1"] * 4, object),
        "config": {"maxpo_k": 2},
    }

    def by_keys(keys, **options):
        return maxpo_advantage(**(arguments | options), keys=keys)[0].ravel().tolist()

    assert by_keys(None) == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3])
    assert by_keys(["u_1_0_0", "u_1_0_1", "u_1_1_0", "u_1_2_0"]) == [2, 2, -1, -1]
    # The last output by its number and not by its row (10 after 9), wherever the rows stand.
    shuffled = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    keys = ["u_1_0_9", "u_1_0_10", "u_1_2_0", "u_1_1_0"]
    assert by_keys(keys, token_level_rewards=shuffled) == [2, 2, -1, -1]
    swapped = [keys[1], keys[0], *keys[2:]]
    assert by_keys(swapped, token_level_rewards=shuffled) == [0, 0, 0, 0]
    # One output each is the same as no keys; equal session numbers of two prompts are two.
    two = np.array(["a", "a", "b", "b"], object)
    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    options = {"index": two, "config": {"maxpo_k": 1}}
    options["token_level_rewards"] = torch.tensor([[1.0], [0.0], [0.0], [3.0]])
    assert by_keys(keys, **options) == by_keys(None, **options) == [1, -1, -3, 3]


@pytest.mark.parametrize("keys", [["a_0_0"], ["a_0_0"] * 6 + ["a"], ["a_0_0"] * 6 + ["a_0_x"]])
def test_keys_of_another_form(keys):
    with pytest.raises(ValueError, match="keys"):
        call([4, 3], 2, keys=keys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    token_rewards, _, _, _ = batch([4, 5])
    rounded = token_rewards.to(dtype)
    result, _ = call([4, 5], 2, token_level_rewards=rounded)
    expected, _ = call([4, 5], 2, token_level_rewards=rounded.float())
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": None}, r"\+algorithm.maxpo_k=4"),
        ({"config": {}}, r"\+algorithm.maxpo_k=4"),
        ({"index": None}, "index of 7 prompts"),
        ({"index": np.zeros(3)}, "index of 7 prompts.*got 3"),
        ({"config": {"maxpo_k": 4}}, "k = 4 and at most N = 4.*rollout.n"),
        ({"config": {"maxpo_k": 0}}, "k"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        call([4, 3], 2, **options)


REAL = """
import numpy as np, torch
from omegaconf import OmegaConf
import verl
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from maxpo.integrations.verl import maxpo_advantage

assert get_adv_estimator_fn("maxpo") is maxpo_advantage
from verl.trainer.ppo.ray_trainer import compute_advantage

rewards = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 4.0]])
mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
data = DataProto.from_dict(
    tensors={"token_level_rewards": rewards, "response_mask": mask},
    non_tensors={"uid": np.array(["a"] * 3, dtype=object)},
)
config = OmegaConf.create({"adv_estimator": "maxpo", "maxpo_k": 2})
data = compute_advantage(data, adv_estimator="maxpo", config=config)
np.testing.assert_array_equal(data.batch["advantages"], mask * torch.tensor([[-2.], [-2.], [4.]]))

# The page's module has put itself in the place where verl's own trainer looks.
from verl.trainer.ppo.v1 import trainer_base

rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
data = DataProto.from_dict(
    tensors={"token_level_rewards": rewards, "response_mask": torch.ones(4, 2)},
    non_tensors={"uid": np.array(["a"] * 4, dtype=object)},
)
data = trainer_base.compute_advantage_for_multi_trajectories(
    data, batch_keys=["a_0_0", "a_0_1", "a_1_0", "a_2_0"], adv_estimator="maxpo", gamma=1.0,
    lam=1.0, num_repeat=3, norm_adv_by_std_in_grpo=True, config=config,
)
assert data.batch["advantages"][:, 0].tolist() == [2, 2, -1, -1], data.batch["advantages"]
print("used maxpo")
"""


def test_real_verl_loads_and_calls_it(tmp_path):
    pytest.importorskip("verl")
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
    module = re.search(r"^## verl\n.*?```python\n(.*?)```", page, re.S | re.M).group(1)
    (tmp_path / "my_module.py").write_text(module)
    # The way of a user: no import but verl's own setting. In a process of its own, as the setting
    # is read when verl is first imported.
    environment = os.environ | {
        "VERL_USE_EXTERNAL_MODULES": "maxpo.integrations.verl,my_module",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
    }
    result = subprocess.run(
        [sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, timeout=300
    )
    assert "used maxpo" in result.stdout, result.stderr[-3000:]
