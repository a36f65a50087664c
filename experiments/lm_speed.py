"""Times a language model's sampling and updates against transformers and the machine's peaks.

All times are medians of calls taken in turns in one process. The table compares tokens per second,
a decoding step late and early in a completion, memory with and without chunked log-probabilities
and, on a device whose peaks are known, bytes and operations per second with those.
"""

from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.lm.model.transformer import Transformer
from maxpo.studies.speed import lm_speed
from maxpo.studies.speed.turns import take_turns

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary, the rows of the table."""
    lm_speed.check_config(config)
    shape = lm_speed.model_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        key = jax.random.key(config.seed)
        model = Transformer(shape, rngs=nnx.Rngs(config.seed))
        batch = lm_speed.make_batch(config, key)
        calls = lm_speed.our_calls(config, model, batch, key)
        if config.huggingface:
            calls |= lm_speed.huggingface_calls(config, model, batch)
        seconds = take_turns(
            calls,
            config.repeats,
            progress=lambda rounds: runs.progress(rounds, unit="rounds"),
        )
        # A step is a round that is done, of all calls.
        for step, taken in enumerate(zip(*seconds.values(), strict=True), start=1):
            for name, of_call in zip(seconds, taken, strict=True):
                run.log(step, {"call": name, "seconds": of_call})
        run.figure("lm_speed", lambda: lm_speed.figure(config, seconds))
        rows = lm_speed.table(config, seconds, lm_speed.update_memory(config))
        return run.finish(rows)


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/lm_speed.py")
