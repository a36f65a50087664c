"""Trains a tiny random Qwen3 with Tunix's own GRPO learner and this library's advantages.

Shows the whole way: register the estimators, name one in `GRPOConfig`, train. The learner, the
rollouts, the loss and the optimizer are Tunix's; with a real model, tokenizer and mesh in the
place of `make_cluster`'s, so is a run on a TPU pod. See configs/tunix_lm.py for the task.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from maxpo import runs
from maxpo.integrations import host
from maxpo.integrations import tunix as integration
from maxpo.methods import parse_method, parse_methods

__all__ = [
    "LetterTokenizer",
    "Report",
    "batches",
    "check_config",
    "is_right",
    "make_cluster",
    "register",
    "train",
    "train_and_evaluate",
]

Report = Callable[[np.ndarray, np.ndarray], None]
"""Called after each rollout with the flat rewards and advantages `[B * N]`."""


class LetterTokenizer:
    """One token for each letter, in the form that Tunix takes from other tokenizers."""

    LETTERS = "?abcdefgh"

    def encode(self, text: str, **_: Any) -> list[int]:
        """The ids of the letters."""
        return [3 + self.LETTERS.index(letter) for letter in text]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The letters, special tokens left out."""
        return "".join(self.LETTERS[i - 3] for i in ids if i >= 3)

    def pad_id(self) -> int:
        """Fills up."""
        return 0

    def bos_id(self) -> int:
        """Begins a text."""
        return 1

    def eos_id(self) -> int:
        """Ends a text."""
        return 2

    def __len__(self) -> int:
        return 3 + len(self.LETTERS)


def is_right(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any
) -> list[float]:
    """Reward 1 for the right letter, as a reward function of Tunix."""
    del prompts
    pairs = zip(completions, answer, strict=True)
    return [float(said == right) for said, right in pairs]


def batches(config: ConfigDict) -> Iterator[dict[str, np.ndarray]]:
    """One batch of prompts and right letters for each update."""
    rng = np.random.default_rng(config.seed)
    letters = list(LetterTokenizer.LETTERS[1 : 1 + len(config.odds)])
    for _ in range(config.updates):
        answers = rng.choice(letters, size=config.prompts, p=np.array(config.odds))
        yield {"prompts": np.full(config.prompts, "?"), "answer": answers}


def make_cluster(config: ConfigDict) -> Any:
    """Tunix's cluster: model, tokenizer, mesh, optimizer and rollouts. Here they are all tiny."""
    import tunix
    from tunix.models.qwen3 import model as qwen3

    tokenizer = LetterTokenizer()
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sizes = qwen3.ModelConfig(
        vocab_size=len(tokenizer), rope_theta=10_000, norm_eps=1e-6, **config.model
    )
    with jax.set_mesh(mesh):
        model = qwen3.Qwen3(sizes, rngs=nnx.Rngs(config.seed))
    roles = (tunix.Role.ACTOR, tunix.Role.REFERENCE, tunix.Role.ROLLOUT)
    return tunix.RLCluster(
        actor=model,
        tokenizer=tokenizer,
        cluster_config=tunix.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=tunix.RLTrainingConfig(
                actor_optimizer=optax.adam(config.learning_rate),
                eval_every_n_steps=config.updates + 1,
                max_steps=config.updates,
            ),
            rollout_config=tunix.RolloutConfig(
                max_prompt_length=4,
                max_tokens_to_generate=1,
                kv_cache_size=16,
                temperature=1.0,
            ),
        ),
    )


def register(config: ConfigDict) -> dict[str, str]:
    """Registers the config's methods with Tunix; returns the names there, by label.

    Those names hold k, as a name in Tunix means one function for as long as the process lives.
    """
    known = integration.names()
    new = [spec for spec in config.methods if spec not in known]
    if new:
        integration.register(*new)
    return {parse_method(spec).label: spec for spec in config.methods}


def train(config: ConfigDict, estimator: str, report: Report) -> Any:
    """Trains one policy with the estimator of that name in Tunix's registry; returns its cluster.

    beta = 0 leaves out the penalty for leaving the reference model, and `seq-mean-token-sum` makes
    the loss the mean over samples that the advantages are made for.
    """
    import tunix

    def after_rollout(rewards: Any, advantages: Any, **_: Any) -> dict[str, Any]:
        report(np.asarray(rewards), np.asarray(advantages))
        return {}

    cluster = make_cluster(config)
    learner = tunix.GRPOLearner(
        rl_cluster=cluster,
        algo_config=tunix.GRPOConfig(
            advantage_estimator=estimator,
            num_generations=config.num_generations,
            beta=0.0,
            loss_agg_mode="seq-mean-token-sum",
        ),
        reward_fns=[is_right],
        metric_fns=[after_rollout],
    )

    def with_seeds() -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(batches(config)):
            # Tunix's own sampler draws from the same seed at every call.
            cluster.cluster_config.rollout_config.seed = config.seed + step
            yield batch

    learner.train(with_seeds())
    return cluster


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the study in `workdir` and returns its summary, a dict of figures by method."""
    check_config(config)
    registered = register(config)
    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        history: dict[str, list[dict[str, float]]] = {label: [] for label in registered}
        for number, (name, rows) in enumerate(history.items()):
            # Policies are trained one after the other: steps count the updates of all of them.
            before = number * config.updates

            def report(
                rewards: np.ndarray,
                advantages: np.ndarray,
                name: str = name,
                rows: list[dict[str, float]] = rows,
                before: int = before,
            ) -> None:
                groups = rewards.reshape(-1, config.num_generations)
                figures = {
                    "mean_reward": float(rewards.mean()),
                    "max_at_k": float(host.max_at_k(groups, config.eval_k).mean()),
                }
                rows.append(figures)
                update = len(rows)
                runs.check_finite(before + update, {f"{name} advantages": advantages})
                run.log(before + update, {"method": name, "update": update, **figures})

            train(config, registered[name], report)
        summary = {
            name: {
                figure: float(np.mean([row[figure] for row in rows[-config.report_updates :]]))
                for figure in ("mean_reward", "max_at_k")
            }
            for name, rows in history.items()
        }
        return run.finish(summary)


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for what Tunix would only notice in the middle, or not at all."""
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "odds": 0,
            "num_generations": 2,
            "updates": 1,
            "prompts": 1,
            "report_updates": 1,
            "eval_k": 1,
            **{f"model.{name}": 1 for name, size in config.model.items() if isinstance(size, int)},
        },
        above={"learning_rate": 0},
    )
    letters = len(LetterTokenizer.LETTERS) - 1
    if not 1 <= len(config.odds) <= letters or abs(sum(config.odds) - 1) > 1e-6:
        raise ValueError(
            f"odds: expected those of 1 to {letters} letters with sum 1, got {config.odds}"
        )
    parse_methods(config.methods, group_size=config.num_generations)
    if config.eval_k > config.num_generations:
        raise ValueError(
            f"eval_k: expected at most num_generations = {config.num_generations}, got "
            f"{config.eval_k}"
        )


if __name__ == "__main__":
    runs.main(train_and_evaluate, default_config="configs/tunix_lm.py")
