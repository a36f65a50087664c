"""Runs every study that docs/results.md quotes, one after the other, and gathers their figures.

Each study is a run of its own in a folder of the workdir, and is resumed or reported as such when
this is started again; `figures/` holds the figures of all, named after their study.
"""

import importlib
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maxpo import runs

__all__ = ["train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the studies and returns their summaries by study."""
    studies = {}
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    for spec in config.studies:
        name, _, variant = spec.partition(":")
        if name not in known or name == "results":
            raise ValueError(f"studies: expected some of {', '.join(known)}; got {spec!r}")
        study = importlib.import_module(f"experiments.{name}")
        studies[spec] = study, runs.load_config(f"configs/{name}.py{variant and ':' + variant}")

    figures = Path(workdir, "figures")
    figures.mkdir(parents=True, exist_ok=True)
    summaries = {}
    for spec, (study, study_config) in studies.items():
        folder = Path(workdir, spec.replace(":", "-"))
        runs.show(f"\n{spec}")
        summaries[spec] = study.train_and_evaluate(study_config, folder)
        for figure in folder.glob("*.png"):
            try:
                shutil.copy(figure, figures / f"{folder.name}-{figure.name}")
            except OSError as error:  # No figure may cost the studies that are left.
                runs.say(f"warning: {figure} is not in {figures}: {error}")
    runs.show(f"\n{figures}")
    return summaries


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/results.py")
