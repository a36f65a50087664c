"""Evaluation from Python: a policy, problems and a reward in, its pass@k and what it wrote out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx

from maxpo.lm.tasks.rewards import GroupReward, Reward
from maxpo.lm.tasks.text import Problem
from maxpo.lm.tasks.tokenizers import Tokenizer
from maxpo.lm.training.arguments import (
    check_arguments,
    check_problems,
    check_room,
    find_reward,
    open_verifier,
    split_policy,
)
from maxpo.lm.training.evaluation import Curve, Judge, curve
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.grading import Grading, deciding, marked
from maxpo.lm.training.problems import encode
from maxpo.lm.training.rollouts import Sampler, make_draw
from maxpo.lm.training.trainer import EVALUATE, key_of

__all__ = ["Evaluation", "evaluate"]


class Evaluation(NamedTuple):
    """What came of an evaluation.

    Attributes:
      curve: pass@k for k = 1, 2, 4, .. up to the number of samples: `k`, `value`, `error` (standard
        errors over problems).
      max_curve: The same of max@k, the mean best reward of k samples.
      texts: P lists of n completions, as the reward saw them.
      rewards: `[P, n]`, NaN where the reward failed.
    """

    curve: Curve
    max_curve: Curve
    texts: list[list[str]]
    rewards: np.ndarray


def evaluate(
    policy: nnx.Module,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    reward: Reward | GroupReward | str,
    samples: int = 16,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    success: float = 1.0,
    prompts: int = 8,
    seed: int = 0,
    workers: int = 0,
    time_limit: float = 10.0,
) -> Evaluation:
    """Judges a policy by the best of k of its samples, without training it.

    Samples are drawn as `maxpo.lm.train` draws those that it judges by. They are the same ones
    where its prompts, those to train on among them, are about equally long: others are sampled from
    in another order, and with other random numbers.

    Args:
      policy: A language model, see `maxpo.lm.model.policy`.
      tokenizer: Between text and its tokens.
      problems: P problems.
      reward: As of `maxpo.lm.train`.
      samples: n, completions of each problem; pass@k is known for k up to n.
      max_new_tokens: T, the longest completion in tokens.
      temperature: Temperature of sampling.
      success: The reward from which a completion is correct, for pass@k.
      prompts: How many problems are sampled from at a time.
      seed: Decides all samples.
      workers: As of `maxpo.lm.train`.
      time_limit: Seconds for a completion, with `workers`.

    Raises:
      ValueError: If an argument makes no sense, before any work.
      RuntimeError: If the reward raised on every completion.
    """
    check_problems("problems", problems)
    check_arguments(
        samples=samples,
        max_new_tokens=max_new_tokens,
        prompts=prompts,
        seed=seed,
        workers=workers,
        success=success,
        temperature=temperature,
    )
    function = find_reward(reward, {"problems": problems})
    graph, params, frozen = split_policy(policy, tokenizer)
    _, encoded = encode(problems, problems, tokenizer, batch=prompts)
    check_room(policy, encoded, max_new_tokens)
    draw = make_draw(
        graph,
        tokenizer,
        group_size=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        frozen=frozen,
    )
    grading = Grading(success, binary=False)
    with open_verifier(function, workers, time_limit) as verify:
        sampler = Sampler(draw, tokenizer, verify)
        judge = Judge(sampler, encoded, key_of(seed, EVALUATE), prompts, grading)
        judged = judge(params, 0)
    FailureLog().note("evaluation", judged.scores)
    texts = [
        [sampler.text(tokens, mask) for tokens, mask in zip(*group, strict=True)]
        for group in zip(judged.completions.tokens, judged.completions.mask, strict=True)
    ]
    correct, rewards = grading.correct(deciding(judged.scores)), marked(judged.scores)
    return Evaluation(
        curve(correct[None], binary=True), curve(rewards[None], binary=False), texts, rewards
    )
