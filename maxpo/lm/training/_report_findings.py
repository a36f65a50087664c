"""What is going on in a run, in plain sentences that its numbers imply."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maxpo.lm.training._report_data import TRAIN, Completion, Group, RunData, number
from maxpo.lm.training._report_html import percent, shortened, show

__all__ = [
    "FACT",
    "KINDS",
    "NOTICE",
    "PROBLEM",
    "RULES",
    "Finding",
    "duration",
    "findings",
    "metric_title",
]

TITLES = {
    "zero_variance_groups": "zero-variance groups (share)",
    "truncated": "truncated (share)",
    "failed": "failed (share)",
    "entropy": "entropy of a token (nats)",
    "completion_length": "completion length (tokens)",
    "predicted_variance_ratio": "maxpo / pkpo_loo_minus_one: variance, predicted",
    "variance_ratio": "maxpo / pkpo_loo_minus_one: variance, measured",
}

WINDOW = 10  # Steps that "the last steps" are.
SILENCE = 600.0  # Seconds without a line after which a run may have stopped.

PROBLEM, NOTICE, FACT = KINDS = ("problem", "notice", "fact")


class Finding(NamedTuple):
    """A sentence about a run.

    Attributes:
      kind: `PROBLEM`, `NOTICE` or `FACT`.
      text: The sentence.
      quote: What it is about, as it was written, or "".
    """

    kind: str
    text: str
    quote: str = ""


def findings(run: RunData) -> list[Finding]:
    """What the rules find, problems first."""
    found = [finding for rule in RULES if (finding := rule(run))]
    return sorted(found, key=lambda finding: KINDS.index(finding.kind))


def metric_title(name: str, eval_k: Any = None) -> str:
    """A metric's name for a reader.

    >>> metric_title("max_at_k", 8), metric_title("eval_pass_at_4"), metric_title("mean_reward")
    ('max@8', 'held-out pass@4', 'mean reward')
    """
    if name in TITLES:
        return TITLES[name]
    name = (
        name.removesuffix("_at_k") + f"_at_{eval_k}" if eval_k and name.endswith("_at_k") else name
    )
    name = re.sub(r"_at_(\w+)$", r"@\1", name)
    name = re.sub(r"^eval_", "held-out ", name)
    return name.replace("_", " ")


def nothing_logged(run: RunData) -> Finding | None:
    """The run has only begun."""
    if run.lines or run.summary is not None:
        return None
    return Finding(NOTICE, "Nothing is logged yet: the first step is not done.")


def rewards_are_zero(run: RunData) -> Finding | None:
    """No sample has a reward, and whether that is because none comes to its end."""
    if not _all_zero(run):
        return None
    truncated = _mean(_recent(run, "truncated"))
    why = (
        f": {percent(truncated)} of completions are {_truncated_at(run)}"
        if truncated >= 0.5
        else ""
    )
    return Finding(PROBLEM, f"All rewards are 0 in {_last_steps(run, 'mean_reward')}{why}.")


def example_of_zero(run: RunData) -> Finding | None:
    """What a completion without a reward looks like, where all are without."""
    zeros = [(g, c) for g, c in _shown(run) if c.reward == 0 and c.failure is None]
    if not _all_zero(run) or not zeros:
        return None
    group, completion = zeros[-1]
    answer = f"\n\nExpected: {shortened(group.answer, 400)}" if group.answer else ""
    prompt, text = shortened(group.prompt, 400), shortened(completion.text, 800)
    quote = f"Prompt: {prompt}\n\nCompletion: {text or '(empty)'}{answer}"
    return Finding(NOTICE, "Example of a completion with reward 0:", f"Step {group.step}\n{quote}")


def verifications_failed(run: RunData) -> Finding | None:
    """The verifier gave no score."""
    share = _mean(_recent(run, "failed"))
    message = shortened(run.first_failure, 2000)
    colon = ". The first message:" if message else "."
    if share == 1:
        text = f"Every verification failed in {_last_steps(run, 'failed')}{colon}"
    elif share > 0:
        text = f"{percent(share)} of verifications failed in {_last_steps(run, 'failed')}{colon}"
    else:
        return None
    return Finding(PROBLEM if share >= 0.1 else NOTICE, text, message)


def no_group_differs(run: RunData) -> Finding | None:
    """Advantages are 0 where the rewards of a group are equal."""
    share = _mean(_recent(run, "zero_variance_groups"))
    if share < 0.8 or _all_correct(run):
        return None
    last = _last_steps(run, "zero_variance_groups")
    if share == 1:
        return Finding(
            PROBLEM, f"No group had rewards that differ in {last}: there is nothing to learn from."
        )
    text = f"In {percent(share)} of the groups all rewards are equal in {last}: they teach nothing."
    return Finding(NOTICE, text)


def completions_are_truncated(run: RunData) -> Finding | None:
    """The limit of tokens is too low, or the model does not know how to end."""
    share = _mean(_recent(run, "truncated"))
    if share < 0.1 or (share >= 0.5 and _all_zero(run)):  # The second says `rewards_are_zero`.
        return None
    text = f"{percent(share)} of completions are {_truncated_at(run)}"
    return Finding(NOTICE, f"{text} in {_last_steps(run, 'truncated')}.")


def completions_are_empty(run: RunData) -> Finding | None:
    """The model ends at once."""
    texts = [completion.text for _, completion in _shown(run)]
    empty = sum(not text.strip() for text in texts)
    if not texts or empty < len(texts) / 2:
        return None
    return Finding(PROBLEM, f"{empty} of the last {len(texts)} completions on this page are empty.")


def answers_without_reward(run: RunData) -> Finding | None:
    """The expected answer is there, so perhaps the verifier looks for another form."""
    wrong = [
        (g, c) for g, c in _shown(run) if c.reward == 0 and c.failure is None and g.answer.strip()
    ]
    holding = [(group, each) for group, each in wrong if _holds(each.text, group.answer.strip())]
    if len(holding) < 3 or len(holding) < len(wrong) / 5:
        return None
    text = (
        f"{len(holding)} of the last {len(wrong)} completions with reward 0 on this page contain "
        "the expected answer: does the verifier look for another form? For example:"
    )
    group, completion = holding[-1]
    quote = f"Expected: {group.answer}\n\nCompletion: {shortened(completion.text, 800)}"
    return Finding(NOTICE, text, quote)


def completions_are_alike(run: RunData) -> Finding | None:
    """Without exploration no method learns."""
    groups = [group for group in _last_groups(run) if len(group.completions) > 1]
    alike = sum(len({each.text for each in group.completions}) == 1 for group in groups)
    if not groups or alike < len(groups) / 2:
        return None
    text = f"In {alike} of the last {len(groups)} groups on this page all completions are the same."
    return Finding(NOTICE, text)


def entropy_is_gone(run: RunData) -> Finding | None:
    """The policy has become deterministic."""
    values = _values(run, "entropy")
    first, last = _ends(values)
    if not values or not (last < 0.01 or last < first / 10):
        return None
    text = f"The entropy of a token went from {show(first)} to {show(last)} nats: "
    return Finding(NOTICE, f"{text}the completions of a group hardly differ any more.")


def all_correct(run: RunData) -> Finding | None:
    """Nothing is left to learn."""
    if not _all_correct(run):
        return None
    last = _last_steps(run, "pass_at_k")
    return Finding(FACT, f"Every completion is correct in {last}: nothing is left to learn.")


def centering(run: RunData) -> Finding | None:
    """Which of the two unbiased estimators has less noise."""
    values = {
        "predicted": _recent(run, "predicted_variance_ratio"),
        "measured": _recent(run, "variance_ratio"),
    }
    said = [f"{show(_mean(of_kind))} {kind}" for kind, of_kind in values.items() if of_kind]
    if not said:
        return None
    text = "Variance of the gradient, maxpo over pkpo_loo_minus_one"
    return Finding(FACT, f"{text}: {', '.join(said)}, means of the last values.")


def reward_changed(run: RunData) -> Finding | None:
    """From the first steps to the last."""
    return _change(run, "mean_reward")


def held_out_changed(run: RunData) -> Finding | None:
    """The same on held-out problems, of the metric with the largest k."""
    names = {name for line in run.lines for name in line if re.match(r"eval_\w+_at_\d+$", name)}
    if not names:
        return None
    return _change(run, max(names, key=lambda name: (int(name.rpartition("_")[2]), name)), window=1)


def loss_changed(run: RunData) -> Finding | None:
    """Of fine-tuning, which has no rewards."""
    return None if run.steps else _change(run, "loss")


def silent(run: RunData) -> Finding | None:
    """A run that is not finished and writes nothing."""
    if run.summary is not None or run.age is None or run.age < SILENCE:
        return None
    return Finding(NOTICE, f"Nothing was written for {duration(run.age)}: it may have stopped.")


def duration(seconds: float) -> str:
    """A time in its largest unit.

    >>> [duration(seconds) for seconds in (1, 90, 7200, 200_000)]
    ['1 second', '2 minutes', '2 hours', '2 days']
    """
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return _count(round(seconds / size), unit)
    return _count(round(seconds), "second")


RULES: tuple[Callable[[RunData], Finding | None], ...] = (
    nothing_logged,
    rewards_are_zero,
    verifications_failed,
    no_group_differs,
    completions_are_truncated,
    completions_are_empty,
    answers_without_reward,
    example_of_zero,
    completions_are_alike,
    entropy_is_gone,
    silent,
    all_correct,
    reward_changed,
    centering,
    held_out_changed,
    loss_changed,
)


def _values(run: RunData, name: str) -> list[float]:
    """All finite values of a metric."""
    return [value for line in run.lines if (value := number(line.get(name))) is not None]


def _recent(run: RunData, name: str) -> list[float]:
    """The finite ones among its last values."""
    last = [line[name] for line in run.lines if name in line][-WINDOW:]
    return [value for each in last if (value := number(each)) is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ends(values: Sequence[float], window: int = WINDOW) -> tuple[float, float]:
    """The means of the first and of the last values."""
    window = max(1, min(window, len(values) // 2))
    return _mean(values[:window]), _mean(values[-window:])


def _change(run: RunData, name: str, window: int = WINDOW) -> Finding | None:
    values = _values(run, name)
    if len(values) < 2:
        return None
    first, last = _ends(values, window)
    title = metric_title(name, run.setting("rl.eval_k"))
    width = max(1, min(window, len(values) // 2))
    over = f", means of the first and the last {width} lines" if width > 1 else ""
    verb = "stayed at" if show(first) == show(last) else f"went from {show(first)} to"
    return Finding(FACT, f"{title[0].upper()}{title[1:]} {verb} {show(last)}{over}.")


def _all_zero(run: RunData) -> bool:
    rewards = [*_recent(run, "mean_reward"), *_recent(run, "max_at_k")]
    return bool(rewards) and not any(rewards)


def _all_correct(run: RunData) -> bool:
    # pass@k may be 1 where only some of a group are correct: then the rewards differ.
    found = [*_recent(run, "pass_at_k"), *_recent(run, "zero_variance_groups")]
    return bool(found) and all(value == 1 for value in found)


def _last_steps(run: RunData, name: str) -> str:
    count = sum(name in line for line in run.lines)
    if count > WINDOW:
        return f"the last {WINDOW} steps"
    return "the only step so far" if count == 1 else f"all {count} steps so far"


def _truncated_at(run: RunData) -> str:
    limit = run.setting("rl.max_new_tokens") or run.setting("max_new_tokens")
    return f"truncated at max_new_tokens = {limit}" if limit else "truncated"


def _last_groups(run: RunData) -> list[Group]:
    """The groups to train on of the last steps that have some."""
    groups = [group for group in run.groups if group.split == TRAIN]
    steps = sorted({group.step for group in groups})[-WINDOW:]
    return [group for group in groups if group.step in steps]


def _shown(run: RunData) -> list[tuple[Group, Completion]]:
    return [(group, each) for group in _last_groups(run) for each in group.completions]


def _holds(text: str, answer: str) -> bool:
    """Whether the answer stands in the text as a word."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)", text) is not None


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
