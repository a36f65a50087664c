"""Post-trains small language models with verifiable rewards and compares methods.

A supervised warm start, then every method from it with the same prompts, then pass@k and max@k on
held-out problems before and after; see configs/lm.py for the variants.
"""

import contextlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import parallel, runs
from maxpo.lm.training.settings import digests, make_settings
from maxpo.studies import lm as study

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary.

    The warm start and every method's run of each seed are runs in folders of `workdir`: started
    again, it takes up what is finished and goes on with what is not. The folder's config also has
    digests of problems, tokenizer and checkpoint: with others, it is refused.
    """
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
    # A run may be taken up on other devices, and be watched in another way.
    apart = ("mesh", "log", "diagnostics")
    identity = {name: value for name, value in config.to_dict().items() if name not in apart}
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.use(mesh))
        settings = make_settings(config)
        identity["digests"] = digests(settings)
        run = stack.enter_context(runs.Run(identity, workdir, loggers=config.log.loggers))
        if run.finished:
            return run.report()
        scores = study.run_stages(settings, run.folder)
        for name, draw in study.figures(settings, scores, run.folder).items():
            run.figure(name, draw)
        curves = {
            quantity: {label: curve._asdict() for label, curve in curves.items()}
            for quantity, curves in study.compare(settings, scores).items()
        }
        return run.finish(curves, table=study.table(settings, scores, run.folder))


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/lm.py")
