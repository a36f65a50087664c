"""What the folder of a language-model run holds beside what every run's does."""

__all__ = ["COMPLETIONS", "HF", "SHAPE"]

COMPLETIONS = "completions"
"""The lines of what the model wrote, without their ending .jsonl."""
HF = "hf"
"""The trained model, for other programs."""
SHAPE = "model"
"""All of the model but the weights, which the checkpoints hold."""
