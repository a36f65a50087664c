"""Studies of the gradients' mean and variance: exact, by Monte Carlo, and of learned baselines."""

__all__: list[str] = []
