"""The same reinforcement learning in three trainers: this library's, TRL's and Tunix's.

Each is its own whole loop, held before each step: P prompts of S tokens, N samples of T tokens
each, a reward that takes no time, advantages that are the rewards less their mean, and one step of
AdamW after a bound on the gradient. There is no reference model. The models are Qwen3s of one
shape, in float32, with random weights of their own. Each may cut its update into micro-batches, of
which one is in memory at a time. This library's may compute layers again in the backward pass; the
others keep what they have computed.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from maxpo import runs, training
from maxpo._extras import missing_extra
from maxpo.lm.model.config import TransformerConfig
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks.rewards import RewardFunction
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import load_tokenizer
from maxpo.lm.training.door import RL_DEFAULTS
from maxpo.lm.training.evaluation import Judge
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.grading import Grading
from maxpo.lm.training.journal import Journal
from maxpo.lm.training.optimizer import make_optimizer
from maxpo.lm.training.problems import encode
from maxpo.lm.training.rollouts import Collector, Rollouts, Sampler, Timer, make_draw
from maxpo.lm.training.schedule import Schedule
from maxpo.lm.training.trainer import EVALUATE, Trainer, key_of
from maxpo.lm.training.update import make_reference, make_update
from maxpo.methods import choose_advantages, parse_methods
from maxpo.studies.speed.held_loop import HeldLoop

__all__ = ["TRAINERS", "Letters", "Reward", "model_config", "our_loop", "trl_loop", "tunix_loop"]

PAD, END = 0, 1
LEARNING_RATE = 1e-6  # The policies stay what they are: each step does the same work.


class Letters:
    """Texts of which each letter is a token, for all three trainers.

    Args:
      size: Number of tokens, the end and the padding among them.
    """

    # Of a plane without gaps, which has room for any vocabulary.
    FIRST = chr(0x20000)

    def __init__(self, size: int):
        try:
            import tokenizers
        except ImportError as error:
            raise missing_extra("step_speed", "tokenizers", "lm", error) from error
        vocabulary = {"<pad>": PAD, "<eos>": END} | {self.letter(i): i for i in range(2, size)}
        model = tokenizers.models.WordLevel(vocabulary, unk_token="<pad>")
        self.backend = tokenizers.Tokenizer(model)
        self.backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
        self.backend.decoder = tokenizers.decoders.Fuse()
        self.backend.add_special_tokens(["<pad>", "<eos>"])

    @classmethod
    def letter(cls, token: int) -> str:
        """The letter of a token."""
        return chr(ord(cls.FIRST) + token)

    def prompts(self, config: ConfigDict) -> list[str]:
        """P texts of S random letters."""
        rng = np.random.default_rng(config.seed)
        shape = (config.prompts, config.prompt_length)
        tokens = rng.integers(2, config.model.vocab_size, shape)
        return ["".join(map(self.letter, row)) for row in tokens]

    def ours(self) -> Any:
        """As this library reads it."""
        with tempfile.TemporaryDirectory() as folder:
            self.backend.save(str(Path(folder) / "tokenizer.json"))
            return load_tokenizer(folder)

    def theirs(self) -> Any:
        """As TRL and Tunix read it."""
        import transformers

        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            pad_token="<pad>",
            eos_token="<eos>",
            padding_side="left",
        )


class Reward:
    """The share of a text's letters with an odd number, in the forms that the trainers call.

    Attributes:
      lengths: Letters of each text of a step so far; the caller empties it.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.__name__ = "reward"  # TRL asks for it.

    def of_text(self, _: Problem, text: str) -> float:
        """Of one completion, for this library."""
        tokens = [ord(letter) for letter in text if letter >= Letters.FIRST]
        self.lengths.append(len(tokens))
        return sum(token % 2 for token in tokens) / max(len(tokens), 1)

    def __call__(self, prompts: Any, completions: Sequence[str], **_: Any) -> list[float | None]:
        """Of all completions, for TRL and Tunix."""
        return [self.of_text(Problem("", ""), text) for text in completions]


def model_config(config: ConfigDict) -> TransformerConfig:
    """The shape of the models."""
    length = config.prompt_length + config.new_tokens
    return TransformerConfig(context_length=length, qk_norm=True, **config.model)


def _more_steps(config: ConfigDict) -> int:
    """More than are timed: a loop that is closed before its end saves nothing."""
    return config.repeats + 2


@dataclasses.dataclass(frozen=True)
class _HeldCollector(Collector):
    """Holds a loop at the start of each of its steps."""

    loop: HeldLoop

    def __call__(self, params: nnx.State, step: int, key: jax.Array, timer: Timer) -> Rollouts:
        self.loop.hold()
        # With the scores, which take no time.
        return self.loop.sampled(super().__call__)(params, step, key, timer)


def our_loop(config: ConfigDict, letters: Letters, reward: Reward, folder: Path) -> HeldLoop:
    """This library's `Trainer`, which also logs to a run's folder.

    Raises:
      MissingExtraError: If the package `tokenizers` is missing.
    """
    fields = {
        **RL_DEFAULTS,
        "steps": _more_steps(config),
        "save_every": _more_steps(config),
        "prompts": config.prompts,
        "micro_batches": config.micro_batches.maxpo,
        "group_size": config.group_size,
        "max_new_tokens": config.new_tokens,
        "temperature": 1.0,
        "eval_k": 1,
        "optimizer": "adamw",
        "learning_rate": LEARNING_RATE,
    }
    rl, grading, tokenizer = ConfigDict(fields), Grading(1.0, False), letters.ours()
    problems = [Problem(text, "") for text in letters.prompts(config)]
    train_on, held_out = encode(problems, problems, tokenizer, batch=config.prompts)
    shape = dataclasses.replace(model_config(config), remat=config.remat)
    graph, params = nnx.split(Transformer(shape, rngs=nnx.Rngs(config.seed)))
    draw = make_draw(
        graph,
        tokenizer,
        group_size=config.group_size,
        max_new_tokens=config.new_tokens,
        temperature=1.0,
    )
    sampler = Sampler(draw, tokenizer, RewardFunction(reward.of_text))
    judge = Judge(sampler, held_out, key_of(config.seed, EVALUATE), config.prompts, grading)
    optimizer = partial(make_optimizer, rl, rules=Transformer.rules)
    method = parse_methods(["rloo"], group_size=config.group_size)

    def train(loop: HeldLoop) -> None:
        trainer = Trainer(
            _HeldCollector(rl, sampler, train_on, grading, config.seed, loop),
            make_update(graph, rl, choose_advantages(method, rl.steps), optimizer=optimizer),
            make_reference(graph, rl),
            FailureLog(),
            Journal(0, 1),
            Schedule(0, 0, "mean_reward", judge),
        )
        state = training.init_state(params, optimizer(LEARNING_RATE))
        with runs.Run(config, folder) as run:
            trainer(run, state, start_from=params, learning_rate=LEARNING_RATE)

    return HeldLoop(train)


def trl_loop(config: ConfigDict, letters: Letters, reward: Reward, folder: Path) -> HeldLoop:
    """TRL's `GRPOTrainer`, with torch on all cores."""
    import datasets
    import torch
    import transformers
    import trl

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(config.seed)
    shape, samples = model_config(config), config.prompts * config.group_size
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_width,
            max_position_embeddings=shape.context_length,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
        )
    )
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=_more_steps(config),
        per_device_train_batch_size=samples // config.micro_batches.trl,
        gradient_accumulation_steps=config.micro_batches.trl,
        num_generations=config.group_size,
        max_completion_length=config.new_tokens,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        scale_rewards="none",
        loss_type="dr_grpo",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=config.seed,
        generation_kwargs={"cache_implementation": config.trl_cache},
    )

    class Holds(transformers.TrainerCallback):
        loop: HeldLoop

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.loop.hold()

    holds = Holds()
    trainer: Any = trl.GRPOTrainer(
        model=model,
        processing_class=letters.theirs(),
        reward_funcs=reward,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"prompt": letters.prompts(config)}),
        callbacks=[holds],
    )

    def train(loop: HeldLoop) -> None:
        holds.loop = loop
        trainer._generate = loop.sampled(trainer._generate)
        trainer.train()

    return HeldLoop(train)


def tunix_loop(config: ConfigDict, letters: Letters, reward: Reward, folder: Path) -> HeldLoop:
    """Tunix's `GRPOLearner`, with its own sampler on a mesh of one device."""
    import optax
    import tunix
    from tunix.models.qwen3 import model as qwen3

    del folder  # It writes nothing.
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shape = model_config(config)
    sizes = qwen3.ModelConfig(
        vocab_size=shape.vocab_size,
        num_layers=shape.layers,
        embed_dim=shape.hidden,
        hidden_dim=shape.mlp,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_width,
        rope_theta=10_000,
        norm_eps=shape.norm_epsilon,
        use_tied_embedding=True,
    )
    roles = (tunix.Role.ACTOR, tunix.Role.REFERENCE, tunix.Role.ROLLOUT)
    with jax.set_mesh(mesh):
        model = qwen3.Qwen3(sizes, rngs=nnx.Rngs(config.seed))
    cluster = tunix.RLCluster(
        actor=model,
        tokenizer=letters.theirs(),
        cluster_config=tunix.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=tunix.RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE)
                ),
                eval_every_n_steps=_more_steps(config),
                max_steps=_more_steps(config),
                mini_batch_size=config.prompts,
                train_micro_batch_size=config.prompts // config.micro_batches.tunix,
                rollout_micro_batch_size=config.prompts,
                compute_logps_micro_batch_size=config.prompts,
            ),
            rollout_config=tunix.RolloutConfig(
                max_prompt_length=config.prompt_length,
                max_tokens_to_generate=config.new_tokens,
                kv_cache_size=config.prompt_length + config.new_tokens,
                temperature=1.0,
            ),
        ),
    )
    learner = tunix.GRPOLearner(
        rl_cluster=cluster,
        algo_config=tunix.GRPOConfig(
            advantage_estimator="rloo",
            num_generations=config.group_size,
            beta=0.0,
            loss_agg_mode="seq-mean-token-sum",
        ),
        reward_fns=[reward],
    )

    def train(loop: HeldLoop) -> None:
        def batches() -> Iterator[dict[str, np.ndarray]]:
            prompts = np.array(letters.prompts(config))
            for step in range(_more_steps(config)):
                # Else the update may still run in the background.
                jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
                loop.hold()
                # Tunix's own sampler draws from the same seed at every call.
                cluster.cluster_config.rollout_config.seed = config.seed + step
                yield {"prompts": prompts}

        cluster.generate = loop.sampled(cluster.generate)
        learner.train(batches())

    return HeldLoop(train)


TRAINERS: dict[str, Callable[[ConfigDict, Letters, Reward, Path], HeldLoop]] = {
    "maxpo": our_loop,
    "trl": trl_loop,
    "tunix": tunix_loop,
}
"""The loops by name, and by the name of the extra that holds the trainer."""
