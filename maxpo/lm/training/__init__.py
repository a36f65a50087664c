"""Training of language models with verifiable rewards.

In the order in which a run uses them:

* `settings`: a config becomes a task, a tokenizer, a model and padded prompts, or an error.
* `sft`: supervised fine-tuning by cross-entropy on answers.
* `rollouts`: sampled groups with their rewards, scored in other processes.
* `update`: advantages, loss and optax, with accumulation, clipping, KL and entropy.
* `evaluation`: unbiased pass@k and max@k curves of held-out prompts.
* `stages`: fine-tuning and each method as runs of their own, which any kill may interrupt.
* `figures`: learning curves, and the curves before and after.
* `report`: one page about all of it, for a browser.
"""

__all__: list[str] = []
