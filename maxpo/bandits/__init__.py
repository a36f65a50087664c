"""Bandits: one action for each context, with policies and values in closed form.

A policy maps observations `[..., D]` to a distribution over actions and has three methods, all of
them over any leading batch axes:

* `sample(key, observations, group_size)` draws a group of actions `[..., N]` for each observation.
* `log_prob(observations, actions)` gives their log-probabilities `[..., N]`.
* `entropy(observations)` gives the entropies `[...]`.
"""

from maxpo.bandits.categorical import Categorical
from maxpo.bandits.gaussian import Gaussian

__all__ = ["Categorical", "Gaussian"]
