"""TRL: the reward function alone, and the real GRPOTrainer on a tiny random model."""

import itertools
import math

import numpy as np
import oracles
import pytest

from maxpo import estimators
from maxpo.integrations.trl import max_at_k_reward

# TRL still calls by its old name what transformers renamed in 5.24.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated and will be removed:FutureWarning"
)

N, K = 6, 3


def lengths(completions, **_):
    return [len(completion) for completion in completions]


def texts(*sizes):
    return ["x" * size for size in sizes]


def max_at_k_gradient(rewards, k):
    """Weights of grad log pi in max@k's estimate, up to a shift: q_i / n, by enumeration."""
    q = oracles.include_one(rewards, k)
    return (q - q.mean()) / len(rewards)


def test_group_centered_rewards_are_max_at_k_advantages():
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 9, (4, N))
    score = max_at_k_reward(lengths, k=K, num_generations=N)
    prompts = [p for p in "abba" for _ in range(N)]  # Equal neighbors, but two groups.
    warped = np.reshape(score(prompts=prompts, completions=texts(*sizes.ravel())), (4, N))
    centered = warped - warped.mean(-1, keepdims=True)
    expected = (1 - 1 / N) / K * np.asarray(estimators.maxpo(sizes, K))
    np.testing.assert_allclose(centered, expected, atol=1e-5)
    # Its direction, without this library: q_i - v_k has the same one within a group.
    for row, rewards in zip(centered, sizes, strict=True):
        q = max_at_k_gradient(rewards.astype(float), K)
        np.testing.assert_allclose(np.corrcoef(row, q)[0, 1], 1, atol=1e-5)


def test_sums_weighted_functions_before_the_warp():
    score = max_at_k_reward(
        lengths, lambda prompts, **_: [-1.0] * len(prompts), k=1, num_generations=3, weights=[2, 1]
    )
    assert score(prompts=["p"] * 3, completions=texts(1, 2, 4)) == [0.0, 2.0, 6.0]
    assert score.__name__ == "max_at_1_of_lengths_<lambda>"


def test_unscored_completions_are_left_out():
    def partly(completions, **_):
        return [None if c == "x" else math.nan if c == "xx" else len(c) for c in completions]

    score = max_at_k_reward(partly, k=2, num_generations=5)
    warped = score(prompts=["p"] * 5, completions=texts(5, 1, 7, 2, 3))
    expected = max_at_k_reward(lengths, k=2, num_generations=3)(
        prompts=["p"] * 3, completions=texts(5, 7, 3)
    )
    assert warped == [expected[0], None, expected[1], None, expected[2]]


def test_logs_the_rewards_before_the_warp():
    logged = {}
    max_at_k_reward(lengths, k=2, num_generations=3)(
        prompts=["p"] * 3, completions=texts(1, 2, 4), log_metric=logged.__setitem__
    )
    pairs = [max(pair) for pair in itertools.combinations((1, 2, 4), 2)]
    assert logged == {
        "mean_reward": pytest.approx(7 / 3),
        "max_at_k": pytest.approx(np.mean(pairs)),
    }


async def asynchronous(**_):
    return []


@pytest.mark.parametrize(
    ("functions", "options", "error", "message"),
    [
        ([], {}, TypeError, "at least one"),
        (["a/reward-model"], {}, TypeError, "plain functions"),
        ([asynchronous], {}, TypeError, "plain functions"),
        ([lengths], {"weights": [1, 2]}, ValueError, "one weight for each of 1 functions, got 2"),
        ([lengths], {"k": 6}, ValueError, "N = 6"),
        ([lengths], {"k": 0}, ValueError, "k = 0|got 0"),
    ],
)
def test_errors_when_made(functions, options, error, message):
    with pytest.raises(error, match=message):
        max_at_k_reward(*functions, **{"k": 2, "num_generations": N, **options})


@pytest.mark.parametrize(
    ("function", "prompts", "message"),
    [
        (lengths, "aaaa", "whole groups of num_generations = 3 completions, got 4"),
        (lengths, "aaabba", "one prompt in completions 3 to 5"),
        (lambda **_: [1.0], "aaa", "expected 3 rewards.*got 1"),
        (lambda **_: [1.0, 2.0, math.inf], "aaa", "finite"),
    ],
)
def test_errors_when_called(function, prompts, message):
    score = max_at_k_reward(function, k=2, num_generations=3)
    with pytest.raises(ValueError, match=message):
        score(prompts=list(prompts), completions=texts(*range(len(prompts))))


@pytest.fixture(scope="module")
def model_and_tokenizer():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    import torch

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    return model, tokenizer


@pytest.fixture
def train(model_and_tokenizer, tmp_path):
    """Trains some steps and returns the trainer, its rewards and its advantages, by group."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, tokenizer = model_and_tokenizer

    def run(**options):
        rewards, advantages, losses = [], [], []

        def count(completions, **_):
            rewards.append([text.count("a") + text.count("b") / 2 for text in completions])
            return rewards[-1]

        class Recorder(trl.GRPOTrainer):
            def _generate_and_score_completions(self, inputs):
                output = super()._generate_and_score_completions(inputs)
                advantages.append(output["advantages"].numpy().copy())
                return output

            def _compute_loss(self, model, inputs):
                loss = super()._compute_loss(model, inputs)
                sums = inputs["completion_mask"].sum(-1) * inputs["advantages"]
                losses.append((loss.item(), sums.numpy(), inputs["completion_mask"].numpy()))
                return loss

        settings = {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "max_steps": 3,
            "per_device_train_batch_size": 2 * N,
            "num_generations": N,
            "max_completion_length": 5,
            "learning_rate": 1e-2,
            "beta": 0.0,
            "scale_rewards": "none",
            "loss_type": "dr_grpo",
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "seed": 0,
        }
        trainer = Recorder(
            model=model,
            processing_class=tokenizer,
            reward_funcs=max_at_k_reward(count, k=K, num_generations=N),
            args=trl.GRPOConfig(**(settings | options)),
            train_dataset=datasets.Dataset.from_dict({"prompt": ["cd", "cd", "ef", "gh"]}),
        )
        trainer.train()
        trainer.losses = losses
        return trainer, np.reshape(rewards, (-1, N)), np.reshape(advantages, (-1, N))

    return run


def test_trainer_uses_maxpo_up_to_the_constant(train, model_and_tokenizer):
    before = {n: p.detach().clone() for n, p in model_and_tokenizer[0].named_parameters()}
    trainer, rewards, advantages = train()
    assert len(rewards) == 6
    assert np.ptp(rewards, axis=-1).any(), "nothing to tell apart"
    expected = np.asarray(estimators.maxpo(rewards, K))
    np.testing.assert_allclose(advantages, (1 - 1 / N) / K * expected, atol=1e-5)
    assert any((p.detach() != before[n]).any() for n, p in trainer.model.named_parameters())
    assert any("max_at_k" in entry for entry in trainer.state.log_history)


def test_reward_weights_make_the_constant_one(train):
    weights = [K * N / (N - 1)]
    trainer, rewards, advantages = train(reward_weights=weights, mask_truncated_completions=True)
    np.testing.assert_allclose(advantages, estimators.maxpo(rewards, K), atol=1e-5)
    # Of a completion without a token nothing remains but its place in the mean, as the page says.
    # At equal policies the loss of a token is minus its advantage.
    empty = 0
    for loss, sums, mask in trainer.losses:
        empty += (mask.sum(-1) == 0).sum()
        assert loss == pytest.approx(-sums.sum() / (len(sums) * trainer.max_completion_length))
    assert empty


def test_group_scaling_is_another_advantage(train):
    """What the page warns of: no constant relates the two."""
    _, rewards, advantages = train(scale_rewards="group")
    expected = np.asarray(estimators.maxpo(rewards, K))
    useful = np.abs(expected) > 1e-3
    ratios = (advantages / np.where(useful, expected, 1))[useful]
    assert np.ptp(ratios) > 0.1 * np.abs(ratios).max()
