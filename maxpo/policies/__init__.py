"""Flax NNX policies.

A policy maps observations `[..., D]` to a distribution over actions and has three methods, all of
them over any leading batch axes:

* `sample(key, observations, group_size)` draws a group of actions `[..., N]` for each observation.
* `log_prob(observations, actions)` gives their log-probabilities `[..., N]`.
* `entropy(observations)` gives the entropies `[...]`.
"""

from maxpo.policies.categorical import Categorical
from maxpo.policies.gaussian import Gaussian

__all__ = ["Categorical", "Gaussian"]
