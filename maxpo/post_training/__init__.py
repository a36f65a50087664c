"""Post-training of language models with verifiable rewards.

From text to a figure of pass@k, in the order in which it happens:

* `settings`: a config becomes a task, a tokenizer, a model and padded prompts, or an error.
* `supervised`: cross-entropy on answers, the warm start.
* `rollouts`: groups of completions, scored in other processes while the next ones are sampled.
* `update`: advantages -> loss -> optax, with accumulation, clipping, KL and entropy.
* `evaluation`: unbiased pass@k and max@k curves of held-out prompts.
* `stages`: the warm start and each method as runs of their own, which any kill may interrupt.
* `figures`: learning curves, and the curves before and after.
"""
