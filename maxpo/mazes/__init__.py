"""Mazes with several goals: environments, an exact solver, and a policy without memory.

An episode has many steps, so a group is one of episodes, and the policy draws one action for each
observation.
"""

from maxpo.mazes.policy import GridPolicy

__all__ = ["GridPolicy"]
