"""Groups of completions as HTML, those of one step shown at a time."""

from collections.abc import Sequence

from maxpo.lm.training._report_data import Completion, Group, RunData, number
from maxpo.lm.training._report_html import details, escape, shortened, show

__all__ = ["completions_by_step"]

ENDS = 4  # Completions of a group that are open at either end of the order.
GOOD, BAD, FAILED = (0x1A, 0x9F, 0x6E), (0xD6, 0x5A, 0x4A), "#8b93a1"


def completions_by_step(found: Sequence[RunData]) -> str:
    """The selector and all groups; the script hides all but those of a step."""
    groups = [_group(run, group) for run in found for group in run.groups]
    if not groups:
        return (
            '<p class="soft">The folder has no completions.jsonl with a whole line, so there are '
            "none to show.</p>"
        )
    shown, count = len(groups), sum(run.group_count for run in found)
    left_out = (
        f'<p class="soft">{shown} of {count} groups are on this page, spread over all '
        f"steps; {count - shown} were left out.</p>"
        if count > shown
        else ""
    )
    names = "".join(
        f'<label>{name} <select name="{name}"></select></label>'
        for name in ("run", "split", "step")
    )
    buttons = "".join(
        f'<button type="button" aria-label="{name} step">{sign}</button>'
        for name, sign in (("previous", "&#9664;"), ("next", "&#9654;"))
    )
    return f'{left_out}<form id="picker" hidden>{names}{buttons}</form>\n{"".join(groups)}'


def _group(run: RunData, group: Group) -> str:
    """A group with its prompt, its completions in the order of their advantages."""
    completions = sorted(group.completions, key=_order, reverse=True)
    marks = _marks(completions)
    cards = [_card(run, each, marks.get(i, "")) for i, each in enumerate(completions)]
    body = "".join(cards)
    if len(cards) > 2 * ENDS + 1:
        middle = details(f"{len(cards) - 2 * ENDS} between them", "".join(cards[ENDS:-ENDS]))
        body = f"{''.join(cards[:ENDS])}{middle}{''.join(cards[-ENDS:])}"
    return (
        f'<section class="group" data-run="{escape(run.name)}" data-split="{escape(group.split)}" '
        f'data-step="{group.step}">\n<p class="soft">step {group.step}, '
        f"{escape(group.split.replace('_', ' '))}: {_counts(run, completions)}</p>\n"
        f"<h3>Prompt</h3><pre>{escape(shortened(group.prompt))}</pre>\n{_answer(group.answer)}"
        f"<h3>Completions</h3>\n{body}</section>\n"
    )


def _answer(answer: str) -> str:
    """The expected answer, closed where it is long."""
    if len(answer) <= 100 and "\n" not in answer:
        return f"<p>Expected answer: <code>{escape(answer)}</code></p>\n" if answer else ""
    return details("Expected answer", f"<pre>{escape(shortened(answer))}</pre>")


def _order(completion: Completion) -> tuple[float, float]:
    low = float("-inf")
    advantage, reward = completion.advantage, completion.reward
    return (low if advantage is None else advantage, low if reward is None else reward)


def _marks(completions: Sequence[Completion]) -> dict[int, str]:
    """Names the first and the last of sorted completions where their advantages differ."""
    known = [i for i, each in enumerate(completions) if each.advantage is not None]
    if not known or completions[known[0]].advantage == completions[known[-1]].advantage:
        return {}
    return {known[0]: "highest advantage", known[-1]: "lowest advantage"}


def _counts(run: RunData, completions: Sequence[Completion]) -> str:
    words = [f"{len(completions)} completions"]
    if run.success is not None:
        words.append(f"{sum(_is_correct(run, each) for each in completions)} correct")
    words += [
        f"{count} {name}"
        for name, count in (
            ("truncated", sum(each.truncated for each in completions)),
            ("failed", sum(each.failure is not None for each in completions)),
        )
        if count
    ]
    return ", ".join(words)


def _is_correct(run: RunData, completion: Completion) -> bool:
    if completion.correct is not None:
        return completion.correct
    success = run.success
    return success is not None and completion.score is not None and completion.score >= success


def _card(run: RunData, completion: Completion, mark: str) -> str:
    correct = _is_correct(run, completion)
    words = [
        f'<b class="correct">&#10003; reward {show(completion.reward)}</b>'
        if correct
        else f"<b>reward {show(completion.reward)}</b>"
    ]
    if completion.score is not None and completion.score != completion.reward:
        words.append(f"score {show(completion.score)}")
    if completion.advantage is not None:
        words.append(f"advantage {completion.advantage:+.3g}")
    if completion.tokens is not None:
        words.append(f"{completion.tokens} tokens")
    if mark:
        words.append(f'<span class="badge">{mark}</span>')
    words += [
        f'<span class="badge {name}">{name}</span>'
        for name, is_so in (("truncated", completion.truncated), ("failed", completion.failure))
        if is_so
    ]
    text = shortened(completion.text)
    body = f"<pre>{escape(text)}</pre>" if text else '<p class="soft">(empty)</p>'
    failure = (
        f'<pre class="failure">{escape(shortened(completion.failure))}</pre>'
        if completion.failure
        else ""
    )
    spans = "".join(f"<span>{word}</span>" for word in words)
    return (
        f'<article class="completion" style="border-color:{_color(run, completion, correct)}">'
        f"<p>{spans}</p>{body}{failure}</article>\n"
    )


def _color(run: RunData, completion: Completion, correct: bool) -> str:
    """Green where correct, from red towards green with the reward elsewhere, gray if it failed."""
    if completion.failure is not None:
        return FAILED
    reward, best = completion.reward or 0.0, number(run.success) or 1.0
    share = 1.0 if correct else 0.7 * min(1.0, max(0.0, reward / best))
    mixed = (round(bad + share * (good - bad)) for good, bad in zip(GOOD, BAD, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
