"""The files of an evaluation."""

import io
import json
import sys
from pathlib import Path

from maxpo.evaluate._evaluation import Evaluation
from maxpo.evaluate._report import to_json
from maxpo.runs import write_atomic

__all__ = ["write"]


def write(evaluation: Evaluation, folder: Path) -> None:
    """Writes `evaluation.json` and, where Matplotlib is there, `evaluation.png`.

    Raises:
      OSError: If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(evaluation), indent=2, allow_nan=False)
    write_atomic(folder / "evaluation.json", text.encode() + b"\n")
    try:
        # Slower to import than all else together, and not needed for the numbers.
        from maxpo.evaluate._figure import draw
    except ImportError as error:
        print(f"{folder / 'evaluation.png'} is not drawn: {error}", file=sys.stderr)
        return
    buffer = io.BytesIO()
    draw(evaluation).savefig(buffer, format="png", dpi=150)
    write_atomic(folder / "evaluation.png", buffer.getvalue())
