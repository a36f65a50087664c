"""maxpo: policy gradients for inference-time objectives, in JAX."""

from maxpo import estimators, losses
from maxpo.order_statistics import max_at_k, pass_at_k, rank_warp

__all__ = ["estimators", "losses", "max_at_k", "pass_at_k", "rank_warp"]
