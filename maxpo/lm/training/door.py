"""Training from Python: a policy, problems and a reward in, a better policy and its curves out."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import parallel, runs
from maxpo.lm.model.lora import LoRA, adapt, adapters_of
from maxpo.lm.model.policy import WithPacking
from maxpo.lm.model.sharding import Rules, layout
from maxpo.lm.model.transformer import Transformer
from maxpo.lm.tasks.rewards import GroupReward, Reward
from maxpo.lm.tasks.text import Problem, Verifier, digest
from maxpo.lm.tasks.tokenizers import Tokenizer
from maxpo.lm.tasks.weighted import WeightedParts
from maxpo.lm.training._assembly import Assembly
from maxpo.lm.training._code_digests import code_digest, value_digest
from maxpo.lm.training._digests import policy_digest, tokenizer_digest
from maxpo.lm.training.arguments import (
    check_arguments,
    check_problems,
    check_room,
    find_reward,
    open_verifier,
    split_policy,
)
from maxpo.lm.training.checks import check_rl
from maxpo.lm.training.evaluation import Curve, Judge, curve
from maxpo.lm.training.failures import FailureLog
from maxpo.lm.training.figures import best_of_k_figure, learning_curves
from maxpo.lm.training.grading import Grading, read_summary, summarized
from maxpo.lm.training.handover import save_shape
from maxpo.lm.training.journal import Journal
from maxpo.lm.training.named_optimizers import check_rules, parse_optimizer
from maxpo.lm.training.problems import encode, problems_per_step
from maxpo.lm.training.summaries import summary_of
from maxpo.lm.training.trainer import ADAPT, key_of
from maxpo.methods import Method, check_graded, parse_methods
from maxpo.order_statistics import powers_up_to

__all__ = ["RL_DEFAULTS", "Result", "train"]

RL_DEFAULTS: dict[str, Any] = {
    # As in configs/lm.py, which says what each of them is.
    "sampling_batches": 1,
    "loss": "score_function",
    "importance_level": "token",
    "loss_aggregation": "constant",
    "length": 1.0,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "clip_dual": 0.0,
    "epochs": 1,
    "minibatches": 1,
    "micro_batches": 1,
    "packing": False,
    "kl_coefficient": 0.0,
    "kl_estimator": "k2",
    "entropy_coefficient": 0.0,
    "zero_variance_groups": "keep",
    "oversampling": 1,
    "failures": "zero",
    "truncated": "keep",
    "truncation_penalty": 0.0,
    "learning_rate": 1e-5,
    "warmup_steps": 5,
    "max_gradient_norm": 1.0,
    "b2": 0.95,
    "weight_decay": 0.0,
}
"""Fields of `rl` that `train` takes by name."""

BEFORE, AFTER = "before", "after"
LOGGED_GROUPS = 2  # Of a step, and of an evaluation.


class Result(NamedTuple):
    """What came of a training run.

    Attributes:
      policy: The trained policy, with parameters of the dtypes that it came with, and its adapters
        if it was trained by them.
      curve: "before" and "after" to pass@k on the held-out problems: `k`, `value`, `error`
        (standard errors over problems).
      max_curve: The same of max@k, the mean best reward of k samples.
      history: What was logged at each step, such as "mean_reward".
      folder: The run's folder.
    """

    policy: nnx.Module
    curve: dict[str, Curve]
    max_curve: dict[str, Curve]
    history: list[dict[str, Any]]
    folder: Path


def train(
    policy: nnx.Module,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    reward: Reward | GroupReward | str,
    method: str = "maxpo:k=4",
    held_out: Sequence[Problem] | None = None,
    group_size: int = 16,
    prompts: int = 8,
    steps: int = 100,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    optimizer: optax.GradientTransformation | str = "adamw",
    lora: LoRA | None = None,
    success: float = 1.0,
    binary: bool = False,
    samples: int = 16,
    seed: int = 0,
    save_every: int = 50,
    evaluate_every: int = 0,
    patience: int = 0,
    log_every: int = 10,
    loggers: Sequence[str] = (),
    workers: int = 0,
    time_limit: float = 10.0,
    workdir: str | os.PathLike[str] | None = None,
    **rl: Any,
) -> Result:
    """Trains a policy for the best of k of its samples, or any other objective of `method`.

    Before and after, `samples` completions of every held-out problem are drawn and scored. Between
    them, each step draws `group_size` completions of each of `prompts` problems, scores them, and
    makes one update. The folder is that of any run: called again with the same arguments, `train`
    goes on after the last checkpoint and ends with the same parameters, bit for bit; of a finished
    run it returns the result. `config.json` in it tells one run from another. Problems, the policy,
    an optimizer and the code of a reward are in it as digests; what a reward calls, or reads from
    elsewhere, is not: give another folder where that has changed.

    Args:
      policy: A language model, see `maxpo.lm.model.policy`. It is not changed.
      tokenizer: Between text and its tokens.
      problems: To learn from.
      reward: A function of a problem and a completion, `group_reward(f)` of a function of a problem
        and all its N completions, "exact", "numeric" or "math" to compare with the answer, or
        "module:function". A call that raises, or returns no number, makes a failed sample. Or a sum
        of several, `maxpo.lm.tasks.weighted.WeightedParts`, whose means are logged.
      method: An estimator with its settings, see `maxpo.methods`.
      held_out: Problems to evaluate on. None: `problems` themselves, which the model has then seen.
      group_size: N, completions of each prompt.
      prompts: P, problems in each step.
      steps: Updates.
      max_new_tokens: T, the longest completion in tokens.
      temperature: Temperature of sampling, in training and evaluation.
      optimizer: The `rl.optimizer` of configs/lm.py, with the learning rate, warm-up, clipping and
        weight decay of `rl`: "adamw", "muon:momentum=0.9". Or any of optax.
      lora: Adapters of a `Transformer`, which are then all that is trained and stored. None: all is
        trained, or where the policy has variables of the type `nnx.LoRAParam` those alone.
      success: The reward from which a completion is correct, for pass@k.
      binary: Train on whether the reward is at least `success`, not on the reward.
      samples: n, completions of each held-out problem.
      seed: Decides the order of problems, and all samples.
      save_every: Steps between two checkpoints.
      evaluate_every: Steps between evaluations while training; the best parameters are kept in
        `best/` of the folder. 0: there are none.
      patience: Evaluations in a row without a new best, after which training ends; 0: never.
      log_every: Steps between two of which `completions.jsonl` has what the policy wrote; 0: never.
      loggers: Who else gets what is logged: any of "tensorboard", "wandb", "trackio", each of which
        needs the extra of its name.
      workers: Processes that score completions, each under `time_limit` and apart from all others;
        `reward` is then a function of a module, of a problem and a text. 0: this process.
      time_limit: Seconds for a completion, with `workers`.
      workdir: The run's folder, the same for all processes of a pod. None: a time-stamped one under
        `runs/`.
      **rl: Any of `RL_DEFAULTS`, the fields of `rl` in configs/lm.py.

    Raises:
      ValueError: If an argument makes no sense, before any work.
      Preempted: By SIGTERM, when the step that is running is saved; see `maxpo.runs.preemptible`.
      UsageError: If `workdir` holds another run, naming the fields that differ.
      FloatingPointError: If a step is not finite, naming it and the prompt.
      RuntimeError: If the reward raised on every completion of a step or an evaluation.
    """
    judged_on = problems if held_out is None else held_out
    given = {"problems": problems} | ({} if held_out is None else {"held_out": held_out})
    for name, of in given.items():
        check_problems(name, of)
    check_arguments(
        group_size=group_size,
        prompts=prompts,
        steps=steps,
        max_new_tokens=max_new_tokens,
        samples=samples,
        seed=seed,
        save_every=save_every,
        evaluate_every=evaluate_every,
        patience=patience,
        log_every=log_every,
        workers=workers,
        success=success,
        temperature=temperature,
    )
    if not isinstance(method, str):
        raise ValueError(f"method: expected text such as 'maxpo:k=4', got {method!r}")
    if lora is not None and not isinstance(lora, LoRA):
        raise ValueError(f"lora: expected an lm.LoRA or None, got {lora!r}")
    own = None if isinstance(optimizer, str) else optimizer
    (chosen,) = parse_methods([method], group_size=group_size, adaptive=True)
    config = _config(
        {
            "steps": steps,
            "prompts": prompts,
            "group_size": group_size,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            # One that is given reads nothing of `rl`.
            "optimizer": optimizer if own is None else "adamw",
            "save_every": save_every,
            "eval_k": max(k for k in powers_up_to(samples) if k <= group_size),
        },
        rl,
        {
            "samples": samples,
            "prompts": prompts,
            "temperature": temperature,
            "every": evaluate_every,
            "patience": patience,
        },
    )
    _check_method(chosen, config, binary=binary)
    rules = getattr(policy, "rules", None)
    _check_optimizer(optimizer, rules, chosen, rl)
    _check_packing(policy, config)
    function = find_reward(reward, given)
    _check_binary(function, success, binary=binary)
    train_on, judged = encode(
        problems,
        judged_on,
        tokenizer,
        batch=problems_per_step(config.rl),
    )
    check_room(policy, judged, max_new_tokens)
    if lora is not None:
        policy = adapt(policy, lora, key_of(seed, ADAPT))
    adapters = adapters_of(policy)
    graph, params, frozen = split_policy(policy, tokenizer)
    identity = {
        "method": chosen._asdict(),
        **config.to_dict(),
        "seed": seed,
        "success": success,
        "binary": binary,
        "optimizer": optimizer if own is None else "given",
        "reward": _identity(reward),
        "digests": {
            "problems": f"{len(problems)} problems, {digest(problems)}",
            "held_out": f"{len(judged_on)} problems, {digest(judged_on)}",
            "tokenizer": tokenizer_digest(tokenizer),
            "policy": policy_digest(nnx.merge_state(params, frozen)),
            "reward": _code_digests(function),
            **({} if own is None else {"optimizer": value_digest(own)}),
        },
        **({"lora": dataclasses.asdict(adapters.lora)} if adapters else {}),
    }
    frozen = parallel.shard(frozen, layout(frozen, rules=rules, fully_sharded=False))
    grading = Grading(success, binary)
    parts = Assembly(graph, params, frozen, rules, tokenizer, config, chosen, own, grading, seed)
    failures, journal = FailureLog(), Journal(log_every, LOGGED_GROUPS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.preemptible())
        verify = stack.enter_context(open_verifier(function, workers, time_limit))
        judge = parts.judge(judged, verify)
        folder = runs.new_folder("lm") if workdir is None else workdir
        run = stack.enter_context(runs.Run(identity, folder, keep=1, loggers=loggers))
        like = parts.initial_state(len(problems))
        before = _scores_before(run, identity, judge, params, failures, journal)
        if run.finished:
            state, _ = run.last_state(like, donate=True)
            after = read_summary(run.summary or {})
            curves = _curves(grading, {BEFORE: before, AFTER: after})
        else:
            if isinstance(policy, Transformer):
                adapted = adapters.lora if adapters else None
                save_shape(policy.config, tokenizer, run.folder, lora=adapted)
            schedule = parts.schedule(judge)
            trainer = parts.trainer(train_on, verify, failures, journal, schedule)
            rate = chosen.learning_rate or config.rl.learning_rate
            state, step = trainer(run, like, start_from=params, learning_rate=rate)
            found = judge(state.params, step)
            failures.note("evaluation after training", found.scores)
            if not schedule.every:
                journal.held_out(run, step, judge, found)
            summary = summary_of(run, schedule, step, group_size, found.scores)
            after = read_summary(summary)
            curves = _curves(grading, {BEFORE: before, AFTER: after})
            _finish(run, summary, curves, chosen, config.rl.eval_k)
        history = runs.read_metrics(run.folder)
    trained = jax.tree.map(lambda new, old: new.astype(old.dtype), state.params, params)
    trained_policy = nnx.merge(graph, trained, frozen)
    return Result(trained_policy, curves["pass"], curves["max"], history, run.folder)


def _config(
    fixed: dict[str, Any], given: Mapping[str, Any], evaluation: dict[str, Any]
) -> ConfigDict:
    unknown = sorted(set(given) - set(RL_DEFAULTS))
    if unknown:
        raise ValueError(
            f"{unknown[0]}: expected an argument of train or one of {', '.join(RL_DEFAULTS)}"
        )
    config = ConfigDict({"rl": {**RL_DEFAULTS, **fixed, **given}, "evaluation": evaluation})
    try:
        check_rl(config)
    except ValueError as error:
        raise ValueError(_ARGUMENTS.sub(_argument, str(error))) from None
    return config


# Fields of a config, as the checks name them, and the arguments that they are here.
_ARGUMENTS = re.compile(r"\b(?:rl|evaluation)\.(\w+)")


def _argument(field: re.Match[str]) -> str:
    return "evaluate_every" if field[0] == "evaluation.every" else field[1]


def _check_method(method: Method, config: ConfigDict, *, binary: bool) -> None:
    """Raises ValueError if the method needs rewards of 0 or 1 and gets others."""
    if not binary:
        check_graded([method.estimator], "method", "binary=False")
    if config.rl.truncated == "penalty":
        check_graded([method.estimator], "method", "truncated=penalty")


def _check_binary(reward: Verifier | GroupReward, success: float, *, binary: bool) -> None:
    """Raises ValueError for what a reward of 0 or 1 would not read, or would always be."""
    if binary and isinstance(reward, WeightedParts):
        raise ValueError(
            "binary: expected False for a reward of several parts, whose weights it would not read"
        )
    if binary and success <= 0:
        raise ValueError(
            f"success: expected more than 0, the reward of a wrong answer, for binary=True, got "
            f"{success}"
        )


def _check_packing(policy: nnx.Module, config: ConfigDict) -> None:
    if config.rl.packing and not isinstance(policy, WithPacking):
        raise ValueError(
            "packing: expected False for a policy without packed_hidden_states, got True for "
            f"{type(policy).__name__}"
        )


def _check_optimizer(
    optimizer: optax.GradientTransformation | str,
    rules: Rules | None,
    method: Method,
    given: Mapping[str, Any],
) -> None:
    """Raises ValueError for settings that an optimizer of the caller's own would not read.

    And for a named one that does not fit the policy's rules.
    """
    if not isinstance(optimizer, str | optax.GradientTransformation):
        raise ValueError(
            "optimizer: expected a name or an optimizer such as optax.adamw(1e-5), got "
            f"{optimizer!r}"
        )
    if isinstance(optimizer, str):
        check_rules("optimizer", parse_optimizer("optimizer", optimizer), rules)
        return
    ours = ("learning_rate", "warmup_steps", "max_gradient_norm", "b2", "weight_decay")
    unread = {name: given[name] for name in ours if name in given}
    if method.learning_rate is not None:
        unread[f"learning_rate of the method {method.label!r}"] = method.learning_rate
    if unread:
        name, value = next(iter(unread.items()))
        raise ValueError(
            f"{name}: expected none beside an optimizer, which has its own, got {value}"
        )


def _scores_before(
    run: runs.Run,
    identity: dict[str, Any],
    judge: Judge,
    params: nnx.State,
    failures: FailureLog,
    journal: Journal,
) -> tuple[np.ndarray, np.ndarray]:
    """As `read_summary` of the policy as it came, from a run of its own that is done once."""
    with runs.Run(identity, run.folder / BEFORE) as own:
        if not own.finished:
            found = judge(params, 0)
            failures.note("evaluation before training", found.scores)
            journal.held_out(own, 0, judge, found)
            summary = summarized(found.scores)
            row: dict[str, Any] = {"": BEFORE}
            for name, of in _shown(_curves(judge.grading, {BEFORE: read_summary(summary)})).items():
                for k in sorted({1, of[BEFORE].k[-1]}):
                    row |= of[BEFORE].at(k, f"{name}@{k}")
            own.finish(summary, table=[row])
        return read_summary(own.summary or {})


def _curves(
    grading: Grading, scored: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, Curve]]:
    """pass@k and max@k of scores and what decides of them, as of `read_summary`."""
    curves: dict[str, dict[str, Curve]] = {"pass": {}, "max": {}}
    for name, (scores, deciding) in scored.items():
        curves["pass"][name] = curve(grading.correct(deciding)[None], binary=True)
        curves["max"][name] = curve(scores[None], binary=False)
    return curves


def _finish(
    run: runs.Run,
    summary: dict[str, Any],
    curves: dict[str, dict[str, Curve]],
    method: Method,
    eval_k: int,
) -> None:
    """Ends the run with its curves, a table of them, and figures; max@k where it is not pass@k."""
    shown = _shown(curves)
    rows = []
    for name in (BEFORE, AFTER):
        row: dict[str, Any] = {"": name}
        for quantity, of in shown.items():
            for k in sorted({1, eval_k, of[name].k[-1]}):
                row |= of[name].at(k, f"{quantity}@{k}")
        rows.append(row)

    def best_of_k() -> Figure:
        panels = {f"{name}@k on held-out problems": of for name, of in shown.items()}
        return best_of_k_figure(panels, BEFORE)

    def learning() -> Figure:
        return learning_curves({method.label: [runs.read_metrics(run.folder)]}, eval_k)

    run.figure("best_of_k", best_of_k)
    run.figure("learning_curves", learning)
    stored = {
        name: {label: curve._asdict() for label, curve in of.items()} for name, of in curves.items()
    }
    run.finish({**summary, **stored}, table=rows)


def _shown(curves: Mapping[str, Mapping[str, Curve]]) -> Mapping[str, Mapping[str, Curve]]:
    """Without max@k where that is pass@k, as for rewards of 0 and 1."""
    is_graded = any(
        not np.allclose(curves["max"][name].value, of.value, atol=1e-6, equal_nan=True)
        for name, of in curves["pass"].items()
    )
    return curves if is_graded else {"pass": curves["pass"]}


def _identity(reward: Reward | GroupReward | str) -> str | dict[str, Any]:
    """What tells one reward from another, as far as names do."""
    if isinstance(reward, WeightedParts):
        parts = {name: _name(part) for name, part in reward.parts.items()}
        return {"parts": parts, "weights": reward.weights, "decides": reward.decides}
    return reward if isinstance(reward, str) else _name(reward)


def _code_digests(reward: Verifier | GroupReward) -> str | dict[str, str]:
    """Of the reward's own code, or of that of its parts."""
    if isinstance(reward, WeightedParts):
        return {name: code_digest(part) for name, part in reward.parts.items()}
    return code_digest(reward.function if isinstance(reward, GroupReward) else reward)


def _name(reward: Reward | GroupReward) -> str:
    function: Any = reward.function if isinstance(reward, GroupReward) else reward
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}:{name}"
