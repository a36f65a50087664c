"""Bandit study: seven methods at the same N, k and step size.

    python -m experiments.bandit --config=configs/bandit.py[:VARIANT] [--config.FIELD=VALUE]

Variants:

    default       16 contexts seen through 2 features, 100 Gaussian arms: one policy for all of them
                  has to spread its samples, so J_1 and J_k want different things.
    bernoulli     The same with 0/1 rewards, 5% of them 1: J_k is pass@k.
    uneven        0/1 rewards again, but 1% of the arms are right in the hardest context and 80% in
                  the easiest: fixed k and one that adapts to each context.
    heavy_tailed  The same with the absolute value of Student's t, 2 degrees of freedom.
    tabular       Every context is seen: the best arm is best for every k.
    anneal        The default with k going from 8 to 1.
    square        x ~ N(theta, 0.1), reward x^2 on [0, 1]: PKPO's continuous toy problem.
    quick         The default, shrunk to seconds.
"""

from ml_collections import ConfigDict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = (
    "default",
    "bernoulli",
    "uneven",
    "heavy_tailed",
    "tabular",
    "anneal",
    "square",
    "quick",
)


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)

    config = ConfigDict()
    config.seed = 0
    config.seeds = 32  # Trained at once; errors are standard errors over them.
    config.methods = (  # See maxpo.methods; a learning_rate in one is its own.
        "reinforce",
        "rloo",
        "grpo",
        "pkpo:k=4",
        "pkpo_loo:k=4",
        "pkpo_loo_minus_one:k=4",
        "maxpo:k=4",
    )
    config.group_size = 16  # N, samples for each context and update.
    config.updates = 1000
    config.evaluate_every = 50  # Updates between two points of the curves, each a checkpoint.
    config.variance_batches = 64  # Gradients drawn to estimate their variance at each point.
    config.optimizer = "sgd"  # Any of optax's that takes a learning rate alone.
    config.learning_rate = 4.0

    config.k_updates = 0  # Updates over which a k such as 8->1 changes; 0: all.
    config.eval_k = 4.0  # The k of the reported J_k.

    config.task = ConfigDict()
    config.task.name = "contextual"
    config.task.num_contexts = 16
    config.task.num_features = 2  # 0 shows the context itself.
    config.task.num_arms = 100
    config.task.law = "gaussian"
    # Standard deviation, success rate (the highest one, with uneven), or degrees of freedom.
    config.task.law_parameter = 1.0

    if variant == "bernoulli":
        config.task.law, config.task.law_parameter = "bernoulli", 0.05
    elif variant == "uneven":
        config.task.law, config.task.law_parameter = "uneven", 0.8
        config.methods = (
            *(f"maxpo:k={k}" for k in (1, 2, 4, 8)),
            "maxpo:k=adaptive,target=0.5,k_max=8",
            "maxpo:k=adaptive,target=0.9,k_max=8",
        )
    elif variant == "heavy_tailed":
        config.task.law, config.task.law_parameter = "heavy_tailed", 2.0
    elif variant == "tabular":
        config.task.num_features = 0
    elif variant == "anneal":
        config.methods = tuple(name.replace("k=4", "k=8->1") for name in config.methods)
        config.k_updates = 800
        config.eval_k = 8.0
    elif variant == "square":
        config.task = ConfigDict({"name": "square", "num_contexts": 1, "mean": 0.5, "std": 0.1})
        config.learning_rate = 0.001
    elif variant == "quick":
        config.seeds = 8
        config.updates = 200
        config.evaluate_every = 20
        config.methods = ("rloo", "pkpo_loo_minus_one:k=4", "maxpo:k=4")
    return config
