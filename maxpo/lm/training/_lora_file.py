"""What a run of adapters leaves beside its checkpoints, to make its model whole again."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from maxpo import runs
from maxpo.lm.model.lora import LoRA
from maxpo.lm.tasks.tokenizers import read_json_object
from maxpo.lm.training._digests import checkpoint_digest

__all__ = ["Adapted", "read_lora", "write_lora"]

_FILE = "lora.json"


class Adapted(NamedTuple):
    """Adapters and what they were trained on.

    Attributes:
      lora: The adapters.
      base: The folder of the frozen model, and its digest; both None where it came from no folder.
      digest: See `base`.
      param_dtype: Dtype of the frozen parameters.
    """

    lora: LoRA
    base: Path | None
    digest: str | None
    param_dtype: str

    def find(self, given: Path | None) -> Path:
        """The folder of the frozen model: the one given, or else the one that it came from.

        Raises:
          UsageError: If it is unknown, no longer there or another model than that of the training.
        """
        base = given or self.base
        if base is None:
            raise runs.UsageError(
                "base: expected the folder of the model that the adapters were trained on, which "
                "came from none, got none"
            )
        if not (base / "config.json").is_file():
            raise runs.UsageError(f"base: expected a checkpoint, got {base}")
        if self.digest not in (None, found := checkpoint_digest(base)):
            raise runs.UsageError(
                f"base: expected the model that the adapters were trained on, {self.digest}, got "
                f"{base} with {found}"
            )
        return base


def write_lora(folder: Path, lora: LoRA, base: Path | None, param_dtype: str) -> None:
    """Writes the file for `read_lora`; arguments as the fields of `Adapted`."""
    fields = {
        **dataclasses.asdict(lora),
        "base": None if base is None else str(base.resolve()),
        "digest": None if base is None else checkpoint_digest(base),
        "param_dtype": param_dtype,
    }
    runs.write_atomic(folder / _FILE, json.dumps(fields, indent=2).encode())


def read_lora(folder: Path) -> Adapted | None:
    """What `write_lora` has written; None where there is no such file."""
    if not (folder / _FILE).is_file():
        return None
    fields: dict[str, Any] = read_json_object(folder / _FILE)
    base = fields["base"]
    return Adapted(
        LoRA(fields["rank"], fields["alpha"], tuple(fields["targets"])),
        None if base is None else Path(base),
        fields["digest"],
        fields["param_dtype"],
    )
