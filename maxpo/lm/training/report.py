"""One page about a run: what is going on, tables, curves, completions; for a browser, offline."""

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maxpo import runs
from maxpo.lm.training._report_completions import completions_by_step
from maxpo.lm.training._report_curves import Curve, chart, color_of, legend
from maxpo.lm.training._report_data import RunData, number, read_runs
from maxpo.lm.training._report_findings import (
    FACT,
    KINDS,
    Finding,
    duration,
    findings,
    metric_title,
)
from maxpo.lm.training._report_html import details, escape, page, percent, show, table

__all__ = ["MOST_GROUPS", "write_report"]

MOST_GROUPS = 200
CURVES = (
    *("mean_reward", "max_at_k", "pass_at_k", "zero_variance_groups", "entropy"),
    *("completion_length", "truncated", "failed", "predicted_variance_ratio", "variance_ratio"),
)
"""Metrics whose curves stand open, in this order, followed by those of held-out problems."""
SHARES = (
    "pass_at_k",
    "zero_variance_groups",
    "truncated",
    "failed",
    "completion_length",
    "entropy",
)


def write_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes one self-contained HTML page about a language-model run, or a study of several.

    The run may go on meanwhile: nothing of it is locked, and nothing but the page is written.

    Args:
      folder: Of a run, or of a study with runs in its folders.
      out: The page's file; `report.html` in the folder if None.

    Returns:
      The page's file.

    Raises:
      UsageError: If the folder is no run's, or nothing is logged in it.
      OSError: If the page cannot be written.
    """
    root = Path(folder)
    found = read_runs(root, MOST_GROUPS)
    path = root / "report.html" if out is None else Path(out)
    runs.write_atomic(path, _render(root, found).encode())
    return path


def _render(root: Path, found: Sequence[RunData]) -> str:
    """The page of the runs of a folder; the first one is the folder's own if it is a run."""
    name = root.resolve().name
    logged = [run for run in found if run.lines]
    parts = {
        "What is going on": _findings(logged),
        "Result": _result(found[0]),
        "Runs": _overview(logged) if len(logged) > 1 else "",
        "Curves": _curves(logged) if logged else "",
        "Best of k": _images(root),
        "Completions": completions_by_step(found),
        "Failed verifications": _failures(logged),
        "Config": _configs(found),
    }
    head = (
        f'<h1>{escape(name)}</h1>\n<p class="path">{escape(str(root.resolve()))}</p>\n'
        f"<p>{escape(_state_of_all(found))}</p>"
    )
    body = "\n".join(
        f'<section class="part"><h2>{title}</h2>\n{content}</section>'
        for title, content in parts.items()
        if content
    )
    return page(f"{name}: report", f"{head}\n{body}")


def _state_of_all(found: Sequence[RunData]) -> str:
    if len(found) == 1 or found[0].lines:
        return _state(found[0])
    finished = sum(run.summary is not None for run in found[1:])
    if found[0].summary is not None:
        return f"finished, with {finished} runs"
    return f"running: {finished} of the {len(found) - 1} runs that were started are finished"


def _state(run: RunData) -> str:
    of = "" if run.total is None else f" of {run.total}"
    if run.summary is not None:
        return f"finished at step {run.step}{of}"
    ago = "" if run.age is None else f"; last line {duration(run.age)} before this report"
    return f"at step {run.step}{of}{ago}"


def _findings(logged: Sequence[RunData]) -> str:
    """What the rules find; one sentence about several runs stands once."""
    found: dict[tuple[str, str], tuple[Finding, list[str]]] = {}
    for run in logged:
        for finding in findings(run):
            # The facts about several runs stand in their table.
            if len(logged) == 1 or finding.kind != FACT:
                found.setdefault(finding[:2], (finding, []))[1].append(run.name)
    if not found:
        return "<p>Nothing is out of the ordinary.</p>"
    items = []
    for finding, names in sorted(found.values(), key=lambda each: KINDS.index(each[0].kind)):
        who = "" if len(logged) == 1 else f'<p class="soft">{escape(", ".join(names))}</p>'
        quote = f"<pre>{escape(finding.quote)}</pre>" if finding.quote else ""
        items.append(
            f'<li class="{finding.kind}">{who}<span>{escape(finding.text)}</span>{quote}</li>\n'
        )
    return f'<ul class="findings">\n{"".join(items)}</ul>'


def _result(run: RunData) -> str:
    """The table of the summary."""
    rows = (run.summary or {}).get("table")
    return table(*runs.table_cells(rows)) if rows else ""


def _overview(logged: Sequence[RunData]) -> str:
    rows = []
    for run in logged:
        last = run.steps[-1] if run.steps else run.lines[-1]
        row = [run.name, _state(run)]
        row += [show(number(last.get(name))) for name in ("mean_reward", "max_at_k", "pass_at_k")]
        for name in ("truncated", "failed"):
            value = number(last.get(name))
            row.append("-" if value is None else percent(value))
        rows.append(row)
    columns = ["run", "state", "mean reward", "max@k", "pass@k", "truncated", "failed"]
    return table(columns, rows, [False, False, *[True] * 5])


def _curves(logged: Sequence[RunData]) -> str:
    """Curves of the steps of reinforcement learning together, and of fine-tuning by itself."""
    learning = [run for run in logged if run.steps]
    other = [run for run in logged if not run.steps]
    drawn = _panels(learning)
    if other:
        title = f"<h3>{escape(', '.join(run.name for run in other))}</h3>" if learning else ""
        drawn += title + _panels(other)
    return drawn


def _panels(drawn: Sequence[RunData]) -> str:
    """A panel for each metric; runs that differ in their seed alone have one color."""
    if not drawn:
        return ""
    kinds = {run.name: re.sub(r"-seed\d+$", "", run.name) for run in drawn}
    colors = {kind: color_of(i) for i, kind in enumerate(dict.fromkeys(kinds.values()))}
    logged = dict.fromkeys(name for run in drawn for line in run.lines for name in line)
    names = [name for name in logged if not name.endswith("_sem")]
    held_out = [name for name in names if name.startswith("eval_")]
    open_ones = [name for name in (*CURVES, *held_out) if name in names]
    if len(open_ones) < 2:  # Of fine-tuning.
        open_ones = names
    panels = {}
    for name in names:
        curves = {
            run.name: curve
            for run in drawn
            if name != "step" and (curve := _curve(run, name, colors[kinds[run.name]])).x
        }
        if curves:
            title = metric_title(name, drawn[0].setting("rl.eval_k"))
            panels[name] = chart(title, curves, from_zero=name in SHARES)
    main = "".join(panels[name] for name in open_ones if name in panels)
    rest = "".join(panel for name, panel in panels.items() if name not in open_ones)
    key = legend(colors) if len(colors) > 1 else ""
    more = details("more curves", f'<div class="curves">{rest}</div>') if rest else ""
    return f'{key}<div class="curves">{main}</div>{more}'


def _curve(run: RunData, name: str, color: str) -> Curve:
    points = [
        (float(line["step"]), value)
        for line in run.lines
        if (value := number(line.get(name))) is not None
    ]
    return Curve([x for x, _ in points], [y for _, y in points], color)


def _images(root: Path) -> str:
    """The figures of the best of k that the run has drawn."""
    found = []
    for path in sorted(root.glob("best_of_k*.png")):
        content = base64.b64encode(path.read_bytes()).decode()
        found.append(f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{content}">')
    return "\n".join(found)


def _failures(logged: Sequence[RunData]) -> str:
    """How many verifications failed in training, by kind, with the first message."""
    counts: dict[str, dict[str, int]] = {}
    for run in logged:
        for line in run.steps:
            for name, value in line.items():
                if name.startswith("failed_") and (count := number(value)) is not None:
                    of_run = counts.setdefault(run.name, {})
                    kind = name.removeprefix("failed_").replace("_", " ")
                    of_run[kind] = of_run.get(kind, 0) + int(count)
    if not any(any(of_run.values()) for of_run in counts.values()):
        return "<p>No verification failed in training.</p>" if counts else ""
    message = next((run.first_failure for run in logged if run.first_failure), "")
    quote = f"<p>The first message:</p><pre>{escape(message)}</pre>" if message else ""
    return table(*runs.table_cells(counts)) + quote


def _configs(found: Sequence[RunData]) -> str:
    return "".join(
        details(escape(run.name), table(["field", "value"], _fields(run.config), [False, False]))
        for run in found
    )


def _fields(config: dict[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, dict) and value:
            rows += _fields(value, f"{prefix}{name}.")
        else:
            rows.append([f"{prefix}{name}", str(value)])
    return rows
