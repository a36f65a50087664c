"""Language models: the model, its tasks, and its training with verifiable rewards.

In the order in which one builds on the other:

* `maxpo.lm.model`: a transformer, checkpoints of the open models, sampling and log-probabilities.
* `maxpo.lm.tasks`: problems, tokenizers, and verifiers that run in other processes.
* `maxpo.lm.training`: supervised fine-tuning, policy gradients, and evaluation by pass@k.
"""

__all__: list[str] = []
