"""Training by adapters: what is stored is small, and what is handed over is whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
from flax import nnx

from maxpo import lm, runs
from maxpo.lm.model.lora import adapters_of
from maxpo.lm.model.pretrained import load_pretrained
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.training import stages
from maxpo.lm.training.handover import export
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.settings import make_settings
from maxpo.runs import UsageError, read_checkpoint
from maxpo.training import init_state

RANK = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    for package in ("tokenizers", "safetensors", "jinja2"):
        pytest.importorskip(package)
    return tiny_checkpoint.make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def config(checkpoint, tmp_path_factory):
    config = tiny_checkpoint.make_tiny_config(tmp_path_factory.mktemp("data"), checkpoint)
    config.model.lora.rank = RANK
    config.sft.update(steps=2, batch_size=2, learning_rate=0.1, warmup_steps=0)
    config.rl.update(steps=2, prompts=2, group_size=4, max_new_tokens=4, eval_k=2, save_every=1)
    config.rl.update(learning_rate=0.1, warmup_steps=0, sampling_batches=1, kl_coefficient=0.1)
    config.evaluation.update(samples=2, prompts=3)
    return config


def score(problem, text):
    return float(len(text) % 2)


@pytest.fixture(scope="module")
def study(config):
    return stages.Stages(make_settings(config), RewardFunction(score))


@pytest.fixture(scope="module")
def start(study):
    """Adapters before the fine-tuning, after which the study keeps those after it."""
    return study.programs.params


@pytest.fixture(scope="module")
def fine_tuned(study, start, tmp_path_factory):
    params, _ = study.fine_tune(tmp_path_factory.mktemp("study") / "runs" / "sft")
    return params


def train(study, fine_tuned, folder):
    study.post_train(study.settings.methods[0], 0, fine_tuned, folder)


@pytest.fixture(scope="module")
def run(study, fine_tuned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "runs" / "rloo-seed0"
    train(study, fine_tuned, folder)
    return folder


def state_of(study, folder):
    """The state of the run's last checkpoint, whose arrays are just these."""
    optimizer = make_optimizer(study.settings.config.rl, 1.0, rules=stages.RULES)
    state, step = read_checkpoint(folder, init_state(study.programs.params, optimizer))
    assert step == 2
    return state


def test_adapters_alone_are_stored_and_trained(study, start, fine_tuned, run, checkpoint):
    state = state_of(study, run)
    D, mlp, qkv = 16, 16, (2 + 2 * 2) * 8  # One layer; as many heads of keys as of queries.
    adapters = RANK * ((D + qkv) + (D + D) + 3 * (D + mlp))
    counted = jax.tree.map(np.size, (state.params, state.opt_state))
    # Parameters and two moments, and the count of steps.
    assert sum(jax.tree.leaves(counted)) == 3 * adapters + 1
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    base = nnx.state(load_pretrained(checkpoint))
    for path, array in nnx.to_flat_state(study.programs.frozen):
        expected = dict(nnx.to_flat_state(base))[path]
        np.testing.assert_array_equal(array[...], expected[...])
    for before, after in ((start, fine_tuned), (fine_tuned, state.params)):
        moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), before, after)
        assert all(jax.tree.leaves(moved))


def test_what_is_handed_over_is_the_adapted_model(study, run, checkpoint):
    trained, layers = state_of(study, run).params["layers"]["adapters"], {}
    for name in study.settings.lora.targets:
        a, b = (np.asarray(trained[f"{name}_{part}"][...], np.float64) for part in "ab")
        # alpha / rank is 32 / 2 by default.
        layers[name] = 16 * np.einsum("lir,lr...->li...", a, b)
    base, whole = load_pretrained(checkpoint), load_pretrained(run / "hf")
    changes = jax.tree.map(lambda x, y: np.asarray(y) - x, nnx.state(base), nnx.state(whole))
    for path, change in nnx.to_flat_state(changes):
        expected = layers.get(path[-1], np.zeros(()))
        np.testing.assert_allclose(change[...], expected + 0 * change[...], rtol=1e-3, atol=1e-6)
    assert set(layers) <= {path[-1] for path, _ in nnx.to_flat_state(changes)}


def test_an_interrupted_run_ends_the_same(study, fine_tuned, run, tmp_path, monkeypatch):
    original = runs.Run.save

    def interrupt(run, step, state):
        original(run, step, state)
        raise KeyboardInterrupt

    folder = tmp_path / "runs" / "rloo-seed0"
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(study, fine_tuned, folder)
    train(study, fine_tuned, folder)
    for name in ("metrics.jsonl", "summary.json", "hf/model.safetensors"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    ours, theirs = (state_of(study, each) for each in (folder, run))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_export_finds_the_base(run, checkpoint, tmp_path):
    assert export(run, tmp_path / "found") == 2
    expected = (run / "hf" / "model.safetensors").read_bytes()
    assert (tmp_path / "found" / "model.safetensors").read_bytes() == expected
    assert export(run, tmp_path / "given", base=checkpoint) == 2
    assert (tmp_path / "given" / "model.safetensors").read_bytes() == expected
    with pytest.raises(UsageError, match="base: expected the model that the adapters were trained"):
        export(run, tmp_path / "no", base=run / "hf")
    with pytest.raises(UsageError, match="base: expected a checkpoint, got"):
        export(run, tmp_path / "no", base=tmp_path)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": ""}, r"model\.lora\.rank: expected 0 without model\.pretrained, .* got 2"),
        ({"lora.rank": -1}, r"model\.lora\.rank: expected at least 0, got -1"),
        ({"lora.alpha": 0.0}, r"model\.lora\.alpha: expected more than 0, got 0\.0"),
        ({"lora.targets": ("head",)}, r"model\.lora\.targets: expected some of .*\['head'\]"),
    ],
)
def test_configs_that_make_no_sense(config, changes, message):
    other = config.copy_and_resolve_references()
    other.model.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_settings(other)


LETTERS = "abcd"
TOKENIZER = lm.CharTokenizer.from_texts([LETTERS + "="])


def test_from_python(tmp_path):
    policy, _ = lm.new("nano", TOKENIZER, context_length=8, layers=1, hidden=16, heads=2, mlp=16)
    before = jax.tree.map(np.array, nnx.state(policy))
    problems = [lm.Problem(prompt=f"{letter}=", answer=letter) for letter in LETTERS]
    lora = lm.LoRA(rank=RANK, targets=("gate", "up"))
    settings = {"reward": score, "steps": 2, "max_new_tokens": 2, "samples": 4, "prompts": 4}
    settings |= {"method": "rloo", "group_size": 4, "learning_rate": 0.1}
    folder = tmp_path / "run"
    result = lm.train(policy, TOKENIZER, problems, lora=lora, workdir=folder, **settings)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(policy))
    assert adapters_of(policy) is None
    assert adapters_of(result.policy).lora == lora
    assert np.any(adapters_of(result.policy).gate_b[...])
    np.testing.assert_array_equal(result.policy.layers.gate[...], policy.layers.gate[...])
    assert json.loads((folder / "config.json").read_text())["lora"]["rank"] == RANK
    with pytest.raises(UsageError, match=r"lora\.rank: 2 -> 3"):
        lm.train(policy, TOKENIZER, problems, lora=lm.LoRA(3), workdir=folder, **settings)
    with pytest.raises(ValueError, match="lora: expected none for a policy that has adapters"):
        lm.train(result.policy, TOKENIZER, problems, lora=lora, **settings)

    pytest.importorskip("safetensors")
    lm.save(policy, TOKENIZER, tmp_path / "base")
    lm.save(result.policy, TOKENIZER, tmp_path / "saved")
    with pytest.raises(UsageError, match=r"base: expected the folder of the model .* got none"):
        export(folder, tmp_path / "exported")
    export(folder, tmp_path / "exported", base=tmp_path / "base")
    saved, exported = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("saved", "exported")
    )
    assert saved == exported
