"""The snippets of docs/integrations.md, run as they stand.

Those trainers cannot be installed here. Stand-ins have the names and signatures of their sources:
prime-rl's `Algorithm`, whose `score_group` is a coroutine over episodes, `iter_trainable_traces`
and `assign_advantages`; rLLM's `register_rllm_adv_estimator`, whose functions are called as
`f(rewards=[group, ...], algorithm_config=..., traj_groups=...)` and return two lists of arrays;
slime's `f(args, samples)`, which returns the raw and the processed rewards as lists; and verl's
`compute_advantage_for_multi_trajectories`, where its trainer looks it up.
"""

import asyncio
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from maxpo import estimators

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
GROUPS = np.random.default_rng(0).integers(0, 5, (3, 6)).astype(float)
EXPECTED = np.asarray(estimators.maxpo(GROUPS, 4))


def snippet(heading, monkeypatch, **modules):
    """Runs the section's code with these modules in place and returns its names."""
    for path, members in modules.items():
        names = path.split("__")
        for depth in range(1, len(names) + 1):
            name = ".".join(names[:depth])
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[".".join(names)]).update(members)
    code = re.search(rf"^## {heading}\n.*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M)
    scope = {}
    exec(code.group(1), scope)
    return scope


class Algorithm:
    def __init__(self, config, policy_pool):
        self.policy_pool = policy_pool


def trace(reward, agent="agent"):
    return SimpleNamespace(reward=reward, agent=SimpleNamespace(name=agent), advantage=None)


def score(algorithm, *traces):
    asyncio.run(algorithm.score_group([SimpleNamespace(traces=[each]) for each in traces]))
    return [each.advantage for each in traces]


def test_prime_rl(monkeypatch):
    def iter_trainable_traces(episodes):
        return ((episode, each) for episode in episodes for each in episode.traces)

    scope = snippet(
        "prime-rl",
        monkeypatch,
        prime_rl__orchestrator__algo__base={
            "Algorithm": Algorithm,
            "iter_trainable_traces": iter_trainable_traces,
        },
        prime_rl__orchestrator__algo__routing={
            "assign_advantages": lambda trace, value: setattr(trace, "advantage", value)
        },
    )
    algorithm = scope["MaxAtKAlgorithm"](SimpleNamespace(k=4), policy_pool=None)
    for group, expected in zip(GROUPS, EXPECTED, strict=True):
        assert score(algorithm, *map(trace, group)) == pytest.approx(expected, abs=1e-5)
    # What is left after errors.
    assert score(algorithm, trace(1.0), trace(0.0), trace(1.0)) == [0, 0, 0]
    assert score(algorithm) == []
    # Two agents, whose rewards have nothing to do with each other.
    algorithm.k = 2
    mixed = [trace(1.0), trace(9.0, "judge"), trace(2.0), trace(4.0)]
    assert score(algorithm, *mixed) == [-2, 0, -2, 4]


def test_rllm(monkeypatch):
    registered = {}
    module = {"register_rllm_adv_estimator": lambda name: lambda f: registered.setdefault(name, f)}
    snippet("rLLM", monkeypatch, rllm__trainer__algorithms__advantage=module)
    page = PAGE.read_text()
    role_map = re.search(r"traj_group_adv_estimator_map=(\{.*?\})", page).group(1)
    assert list(eval(role_map).values()) == list(registered)
    ragged = [*GROUPS, GROUPS[0, :5], GROUPS[0, :3], GROUPS[0, :0]]
    advantages, returns = registered["max_at_4"](
        rewards=ragged, algorithm_config=object(), traj_groups=[None] * len(ragged)
    )
    assert [a.shape for a in advantages] == [r.shape for r in ragged] == [r.shape for r in returns]
    np.testing.assert_allclose(advantages[:3], EXPECTED, atol=1e-5)
    np.testing.assert_allclose(advantages[3], estimators.maxpo(GROUPS[0, :5], 4), atol=1e-5)
    assert not advantages[4].any()


def sample(reward, group, rollout=None):
    return SimpleNamespace(
        get_reward_value=lambda args: reward, group_index=group, rollout_id=rollout
    )


def test_slime(monkeypatch):
    post_process = snippet("slime", monkeypatch)["post_process_rewards"]
    # Unequal groups, out of order: the last sample of the first group comes last.
    samples = [sample(r, prompt) for prompt, group in enumerate(GROUPS) for r in group]
    samples += [sample(r, 7) for r in (1, 0, 1)]
    samples = [*samples[:5], *samples[6:], samples[5]]
    raw, processed = post_process(SimpleNamespace(), samples)
    assert raw == [s.get_reward_value(None) for s in samples]
    expected = [*EXPECTED[0, :5], *EXPECTED[1:].ravel(), 0, 0, 0, EXPECTED[0, 5]]
    assert processed == pytest.approx(expected, abs=1e-5)
    # A rollout that was split is one sample; rewards 4, 0, 0, 0, 0 at k = 4 are worth 16 and -4.
    split = [sample(r, 0, rollout) for r, rollout in [(4, 9), (4, 9), (0, 3), *[(0, None)] * 3]]
    assert post_process(SimpleNamespace(), split)[1] == [16, 16, -4, -4, -4, -4]
    with pytest.raises(ValueError, match="label"):
        post_process(SimpleNamespace(), [sample(1.0, None)])


def test_verl(monkeypatch):
    torch = pytest.importorskip("torch")
    importlib.import_module(
        "maxpo.integrations.verl"
    )  # Before the stand-in, which has no registry.
    trainer_base = SimpleNamespace(
        compute_advantage_for_multi_trajectories=lambda *_, **__: "by row"
    )
    scope = snippet("verl", monkeypatch, verl__trainer__ppo__v1={"trainer_base": trainer_base})
    assert trainer_base.compute_advantage_for_multi_trajectories is scope["by_session"]
    data = SimpleNamespace(
        batch={
            "token_level_rewards": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
            "response_mask": torch.ones(4, 2),
        },
        non_tensor_batch={"uid": np.array(["u"] * 4, object)},
    )
    arguments = {"batch_keys": ["u_0_0", "u_0_1", "u_1_0", "u_2_0"], "gamma": 1.0, "num_repeat": 3}
    assert scope["by_session"](data, adv_estimator="grpo", **arguments) == "by row"
    assert (
        scope["by_session"](data, adv_estimator="maxpo", config={"maxpo_k": 2}, **arguments) is data
    )
    assert data.batch["advantages"].tolist() == [[2, 2], [2, 2], [-1, -1], [-1, -1]]
    assert data.batch["returns"] is data.batch["advantages"]
