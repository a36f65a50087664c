"""How estimators are drawn: the same line in every figure."""

from typing import Any

# Dashes and shades besides colours, so that lines can be told apart in grey.
STYLES: dict[str, tuple[str, Any]] = {
    "reinforce": ("#9a9a9a", (0, (1, 2))),
    "rloo": ("#4d4d4d", "--"),
    "grpo": ("#b07aa1", "-."),
    "grpo+entropy": ("#f28e2b", (0, (3, 1, 1, 1, 1, 1))),
    "pkpo": ("#edc948", (0, (1, 1))),
    "pkpo_loo": ("#59a14f", (0, (5, 1, 1, 1))),
    "pkpo_loo_minus_one": ("#e15759", (0, (4, 2))),
    "maxpo": ("#1f4e9c", "-"),
}
