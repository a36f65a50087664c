"""The snippets of docs/integrations.md, run as they stand.

Those trainers cannot be installed here. Stand-ins have the names and signatures of their sources:
prime-rl's `AdvantageInputs`, a dataclass with a group's `rollouts`, which have a `reward`, and
`AdvantageOutputs` with a list of floats; rLLM's `register_rllm_adv_estimator`, whose functions are
called as `f(rewards=[group, ...], algorithm_config=...)` and return two lists of arrays; slime's
`f(args, samples)`, which returns the raw and the processed rewards as lists.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from maxpo import estimators

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
GROUPS = np.random.default_rng(0).integers(0, 5, (3, 6)).astype(float)
EXPECTED = np.asarray(estimators.maxpo(GROUPS, 4))


@dataclass
class AdvantageInputs:
    rollouts: list


@dataclass
class AdvantageOutputs:
    advantages: list


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


def test_prime_rl(monkeypatch):
    module = {"AdvantageInputs": AdvantageInputs, "AdvantageOutputs": AdvantageOutputs}
    scope = snippet("prime-rl", monkeypatch, prime_rl__orchestrator__advantage=module)
    for group, expected in zip(GROUPS, EXPECTED, strict=True):
        inputs = AdvantageInputs([SimpleNamespace(reward=reward) for reward in group])
        output = scope["max_at_k"](inputs, k=4).advantages
        assert isinstance(output, list)
        assert output == pytest.approx(expected, abs=1e-5)


def test_rllm(monkeypatch):
    registered = {}
    module = {"register_rllm_adv_estimator": lambda name: lambda f: registered.setdefault(name, f)}
    snippet("rLLM", monkeypatch, rllm__trainer__algorithms__advantage=module)
    ragged = [*GROUPS, GROUPS[0, :5]]
    advantages, returns = registered["max_at_4"](rewards=ragged, algorithm_config=object())
    assert [a.shape for a in advantages] == [r.shape for r in ragged] == [r.shape for r in returns]
    np.testing.assert_allclose(advantages[:3], EXPECTED, atol=1e-5)


def test_slime(monkeypatch):
    scope = snippet("slime", monkeypatch)
    samples = [SimpleNamespace(get_reward_value=lambda args, r=r: r) for r in GROUPS.ravel()]
    raw, processed = scope["post_process_rewards"](SimpleNamespace(n_samples_per_prompt=6), samples)
    assert raw == list(GROUPS.ravel())
    assert processed == pytest.approx(EXPECTED.ravel(), abs=1e-5)
