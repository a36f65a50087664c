"""Flax NNX policies.

A policy maps observations `[..., D]` to a distribution over actions and has three methods, all of
them over any leading batch axes:

* `sample(key, observations, group_size)` draws a group of actions `[..., N]` for each observation.
* `log_prob(observations, actions)` gives their log-probabilities `[..., N]`.
* `entropy(observations)` gives the entropies `[...]`.

`GridPolicy` is the exception: where an episode has many steps the group is one of episodes, and it
draws one action for each observation. `Transformer` is another: `maxpo.generation` samples from it
and `maxpo.token_log_probs` scores what was sampled.
"""

from maxpo.policies.categorical import Categorical
from maxpo.policies.gaussian import Gaussian
from maxpo.policies.grid import GridPolicy
from maxpo.policies.transformer import SIZES, Transformer, TransformerConfig, make_config

__all__ = [
    "SIZES",
    "Categorical",
    "Gaussian",
    "GridPolicy",
    "Transformer",
    "TransformerConfig",
    "make_config",
]
