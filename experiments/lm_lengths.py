"""Times sampling and updates where completions end early and late.

Sampling is a single loop or goes in blocks, an update computes for padding or is packed.

All times are medians of calls taken in turns in one process. The table has useful tokens a second:
those before the ends, whatever the device does beside them.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs
from maxpo.studies.speed import lm_lengths, update_lengths
from maxpo.studies.speed.turns import take_turns

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the benchmark in `workdir` and returns its summary, the rows of the table."""
    lm_lengths.check_config(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        seconds = take_turns(
            {**lm_lengths.sampling_calls(config), **update_lengths.update_calls(config)},
            config.repeats,
            progress=lambda rounds: runs.progress(rounds, unit="rounds"),
        )
        # A step is a round that is done, of all calls.
        for step, taken in enumerate(zip(*seconds.values(), strict=True), start=1):
            for (lengths, how), of_call in zip(seconds, taken, strict=True):
                run.log(step, {"call": f"{lengths} lengths, {how}", "seconds": of_call})
        sampling = lm_lengths.sampling_table(config, seconds)
        return run.finish({**sampling, **update_lengths.update_table(config, seconds)})


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/lm_lengths.py")
