"""pass@k and max@k of scores that any program has written.

`python -m maxpo.evaluate scores.jsonl` prints them, and `evaluate` returns them; neither imports
JAX. `docs/evaluation.md` tells which files are read, and how.
"""

from maxpo.evaluate._curves import Curve
from maxpo.evaluate._evaluation import Evaluation, Metric, Source, evaluate

__all__ = ["Curve", "Evaluation", "Metric", "Source", "evaluate"]
