"""What a run from a checkpoint leaves for other programs, compared with transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
from flax import nnx
from full_disk import full_disk

from maxpo import lm
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.training import stages
from maxpo.lm.training.handover import checkpoint_folder
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.settings import make_model, make_settings
from maxpo.runs import read_checkpoint, read_metrics
from maxpo.training import init_state

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    for package in ("tokenizers", "safetensors", "jinja2"):
        pytest.importorskip(package)
    return tiny_checkpoint.make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def config(checkpoint, tmp_path_factory):
    config = tiny_checkpoint.make_tiny_config(tmp_path_factory.mktemp("data"), checkpoint)
    config.sft.steps = 0
    config.rl.update(steps=2, prompts=2, group_size=4, max_new_tokens=4, eval_k=2)
    config.rl.update(learning_rate=0.01, warmup_steps=0, sampling_batches=1)
    config.evaluation.update(samples=2, prompts=3)
    return config


def score(problem, text):
    return float(len(text) % 2)


class Study:
    """Runs of one config, for all of which is compiled once."""

    def __init__(self, config):
        self.settings = make_settings(config)
        self.stages = stages.Stages(self.settings, RewardFunction(score))
        self.params = self.stages.programs.params

    def train(self, folder):
        return self.stages.post_train(self.settings.methods[0], 0, self.params, folder)

    def trained(self, folder):
        """The model of a run's last checkpoint."""
        optimizer = make_optimizer(self.settings.config.rl, 1.0, rules=stages.RULES)
        state, step = read_checkpoint(folder, init_state(self.params, optimizer))
        assert step == 2
        graph, _ = make_model(self.settings, jax.random.key(0))
        return nnx.merge(graph, state.params)


@pytest.fixture(scope="module")
def study(config):
    return Study(config)


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "runs" / "rloo-seed0"
    study.train(folder)
    return folder


def test_transformers_computes_and_writes_what_the_trained_model_does(study, run, checkpoint):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "hf", dtype=torch.float32)
    ours = study.trained(run)
    length = study.settings.model.context_length
    forward = nnx.jit(lambda model, tokens, mask: model(tokens, mask))

    def logits(tokens):
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        found = forward(ours, jnp.asarray(padded), jnp.arange(length)[None] < len(tokens))
        return np.asarray(found[0, : len(tokens)])

    prompt = study.settings.held_out.take(np.array([0])).prompts.tokens[0].tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt])).logits[0].numpy()
        written = theirs.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False)
    np.testing.assert_allclose(logits(prompt), expected, rtol=1e-4, atol=1e-5)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + 4 and tokens[-1] not in (0, 2):
        tokens.append(int(np.argmax(logits(tokens)[-1])))
    assert written[0].tolist() == tokens
    # The weights are not those of the start.
    before = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        assert np.abs(before(torch.tensor([prompt])).logits[0].numpy() - expected).max() > 1e-3


def test_its_tokenizer_is_the_one_it_was_trained_with(run, checkpoint):
    for name in COMPANIONS:
        assert (run / "hf" / name).read_bytes() == (checkpoint / name).read_bytes()
    fields = json.loads((run / "hf" / "config.json").read_text())
    special = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert special == {"bos_token_id": 3, "eos_token_id": [0, 2], "pad_token_id": 2}
    # The training has needed less.
    assert fields["max_position_embeddings"] == 96
    assert fields["torch_dtype"] == "float32"


def test_transformers_has_its_tokenizer_and_its_template(run, checkpoint):
    transformers = pytest.importorskip("transformers")
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(folder) for folder in (run / "hf", checkpoint)
    )
    messages = [{"role": "user", "content": "6+6="}]
    for tokenize in (True, False):
        found = [
            tokenizer.apply_chat_template(messages, tokenize=tokenize, add_generation_prompt=True)
            for tokenizer in (ours, theirs)
        ]
        assert found[0] == found[1]
    assert found[0] == "<|im_start|>user\n6+6=<|im_end|>\n<|im_start|>assistant\n"
    ids = lm.load_tokenizer(run / "hf").encode("6+6=")
    assert ours.encode("6+6=") == theirs.encode("6+6=") == [3, *ids]
    assert (ours.eos_token, ours.pad_token) == ("<|im_end|>", "<pad>")


def test_a_run_goes_on_from_a_run(study, config, run):
    other = config.copy_and_resolve_references()
    other.model.pretrained = str(run)
    settings = make_settings(other)
    assert settings.checkpoint == run / "hf"
    assert settings.train.problems == study.settings.train.problems
    _, params = make_model(settings, jax.random.key(0))
    expected = nnx.state(study.trained(run), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_folders_that_are_no_checkpoints(study, run, tmp_path):
    assert checkpoint_folder(tmp_path) == tmp_path  # Whatever it is.
    assert checkpoint_folder(run / "hf") == checkpoint_folder(str(run)) == run / "hf"
    (run.parent / "summary.json").write_text("{}")
    (run.parent / "sft").mkdir(exist_ok=True)
    for name in ("model.pretrained", "folder"):
        message = rf"^{name}: expected a checkpoint or one of its runs \(rloo-seed0\), got the run"
        with pytest.raises(ValueError, match=message):
            checkpoint_folder(run.parent, name)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="expected a checkpoint or a run with a folder hf/, got"):
        checkpoint_folder(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_a_full_disk_at_the_end_loses_nothing(study, run, tmp_path, monkeypatch, file):
    size = (run / "hf" / "tokenizer.json").stat().st_size
    assert size < (run / "hf" / "model.safetensors").stat().st_size - 100
    limit = 100 if file == "tokenizer.json" else size + 100
    original = stages.hand_over

    def hand_over(*arguments, **options):
        with full_disk(limit):
            original(*arguments, **options)

    folder = tmp_path / "runs" / "rloo-seed0"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "hand_over", hand_over)
        with pytest.raises(OSError, match="File too large") as raised:
            study.train(folder)
    assert str(raised.value.filename).endswith(f"/{file}")
    assert not (folder / "hf" / "config.json").exists()
    assert not (folder / "summary.json").exists()
    with pytest.raises(ValueError, match=r"or a run with a folder hf/, got the run"):
        checkpoint_folder(folder)
    metrics = (folder / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read_metrics(folder)] == [1, 2]
    monkeypatch.setattr(study.stages.programs, "update", None)  # There is nothing to be done again.
    study.train(folder)
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    for name in ("metrics.jsonl", "summary.json", "completions.jsonl"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    for path in (run / "hf").iterdir():
        assert (folder / "hf" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("export", ["", "bfloat16"])
def test_what_is_stored_is_what_is_asked_for(study, config, run, tmp_path, monkeypatch, export):
    other = config.copy_and_resolve_references()
    other.model.export = export
    programs = study.stages.programs
    monkeypatch.setattr(stages, "Programs", lambda settings: programs)
    Study(other).train(tmp_path)
    if not export:
        assert not (tmp_path / "hf").exists()
        return
    expected = (run / "hf" / "config.json").read_text().replace("float32", "bfloat16")
    assert (tmp_path / "hf" / "config.json").read_text() == expected
    other.model.pretrained = str(tmp_path)
    _, found = make_model(make_settings(other), jax.random.key(0))
    whole = nnx.state(study.trained(run), nnx.Param)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), whole)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)
