"""A tiny language-model study in x64 and JAX's strict modes, against the same without them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import lm
from maxpo.runs import load_config, read_metrics

ROOT = Path(__file__).parents[2]
MODES = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}


def study(folder):
    """Trains in `folder` on sums of two digits, every feature switched on."""
    folder.mkdir()
    problems = [
        json.dumps({"question": f"{a}+{b}=", "answer": str(a + b)})
        for a in range(5)
        for b in (1, 2)
    ]
    for name, part in (("train", problems[:8]), ("held_out", problems[8:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part))
    config = load_config("configs/lm.py:jsonl")
    config.seeds, config.methods = 1, ("maxpo:k=2->1",)
    config.task.train_path = str(folder / "train.jsonl")
    config.task.held_out_path = str(folder / "held_out.jsonl")
    config.model.overrides.update(
        hidden=8, layers=1, heads=2, kv_heads=1, mlp=8, qk_norm=True, attention_bias=True
    )
    config.sft.update(steps=2, batch_size=4, log_every=1, save_every=2)
    config.rl.update(steps=2, prompts=2, group_size=4, max_new_tokens=3, eval_k=2, save_every=2)
    config.rl.update(loss="clipped_ratio", epochs=2, minibatches=1, micro_batches=2)
    config.rl.update(kl_coefficient=0.01, entropy_coefficient=0.01)
    config.evaluation.update(samples=4, prompts=2)
    config.verification.update(workers=1)
    lm.train_and_evaluate(config, folder / "run")


@pytest.mark.slow
def test_the_modes_change_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "modes")],
        env=os.environ | MODES | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    study(tmp_path / "plain")
    output, _ = child.communicate()
    assert child.returncode == 0, output
    runs = ("sft", "maxpo_k2-1-seed0")
    for name in runs:
        plain, modes = (read_metrics(tmp_path / kind / "run" / name) for kind in ("plain", "modes"))
        assert len(plain) == len(modes) == 2
        for one, other in zip(plain, modes, strict=True):
            assert one.keys() == other.keys()
            for field, value in one.items():
                np.testing.assert_allclose(other[field], value, rtol=1e-4, atol=1e-6, err_msg=field)


if __name__ == "__main__":
    study(Path(sys.argv[1]))
