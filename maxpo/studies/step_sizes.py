"""Is an estimator better, or is its step only longer? Training at every step size at once.

Estimators differ in the length of their gradients as well as in their noise, so one that wins at a
common step size may have won by scale alone. Here each is trained at every step size of a grid, and
compared both at a common one and at its own best. The best step size is chosen on one half of the
seeds and reported on the other: choosing and reporting on the same seeds would flatter whoever is
noisiest.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo.plotting import WIDTH, draw_line, legend_below, styles, tidy, with_errors
from maxpo.studies import bandit
from maxpo.studies.variance import moments

__all__ = ["compare", "final_objectives", "step_size_figure"]


def final_objectives(config: ConfigDict, learning_rates: Sequence[float]) -> dict[str, np.ndarray]:
    """Exact J_k after the `config.evaluate_every` updates of one `Trainer.advance`.

    Args:
      config: A bandit study's config, as `bandit.check_config` takes it; its own step size is not
        used.
      learning_rates: The L step sizes, all trained at once.

    Returns:
      For each method's label `[L, S]`, NaN where training left the floating-point numbers.
    """
    trainer = bandit.make_trainer(config)
    rates = jnp.asarray(learning_rates)

    @jax.jit
    def train(method: jax.Array) -> jax.Array:
        def at(rate: jax.Array) -> jax.Array:
            state = trainer.advance(method, rate, trainer.keys, trainer.init(trainer.keys))
            return jax.vmap(trainer.objective)(trainer.keys, state)

        return jax.vmap(at)(rates)

    return {
        method.label: np.asarray(train(number), np.float64)
        for number, method in enumerate(bandit.read_methods(config))
    }


def compare(
    objectives: Mapping[str, np.ndarray], learning_rates: Sequence[float], common: float
) -> dict[str, dict[str, float]]:
    """J_k at the common and at the best step size, with standard errors over seeds.

    Args:
      objectives: What `final_objectives` returned.
      learning_rates: Its step sizes.
      common: One of them.

    Returns:
      For each method `common`, `best` and, where MaxPO is among them, `minus_maxpo`, each with
      `_sem`, and `best_step_size`. The best step size is that of the first half of the seeds, its
      J_k the mean of the second half. `minus_maxpo` is the difference at the common step size,
      seed by seed: they share tasks and random numbers, so it is known far better than either.
    """
    at_common = {
        name: values[list(learning_rates).index(common)] for name, values in objectives.items()
    }
    maxpo = next((name for name in objectives if name.split()[0] == "maxpo"), None)
    rows = {}
    for name, values in objectives.items():
        half = values.shape[1] // 2
        chosen = int(np.argmax(np.nan_to_num(values[:, :half].mean(axis=1), nan=-np.inf)))
        figures = {"common": at_common[name], "best": values[chosen, half:]}
        if maxpo is not None:
            figures["minus_maxpo"] = at_common[name] - at_common[maxpo]
        row: dict[str, float] = {}
        for label, by_seed in figures.items():
            value, error = moments.mean(by_seed)
            row |= {label: float(value), f"{label}_sem": float(error)}
        rows[name] = {**row, "best_step_size": float(learning_rates[chosen])}
    return rows


def step_size_figure(
    objectives: Mapping[str, Mapping[str, np.ndarray]],
    learning_rates: Sequence[float],
    eval_ks: Mapping[str, float],
) -> Figure:
    """Final J_k over the step size, one panel for each reward law, bands of two standard errors.

    Args:
      objectives: By law, what `final_objectives` returned.
      learning_rates: Its step sizes.
      eval_ks: The k of each law's J_k.
    """
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots(1, len(objectives), squeeze=False)[0]
    for axis, (law, by_method) in zip(axes, objectives.items(), strict=True):
        lines = styles(list(by_method))
        for name, values in by_method.items():
            error = values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
            line = with_errors(learning_rates, values.mean(axis=1), error)
            draw_line(axis, *line, name, lines[name])
        axis.set_xscale("log", base=2)
        axis.set_xlabel("step size")
        tidy(axis, f"{law}: final max@{eval_ks[law]:g}")
    legend_below(figure, axes[0])
    return figure
