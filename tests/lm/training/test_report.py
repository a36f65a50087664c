"""The page about a run: what its rules say of folders made by hand, and that it is safe to open."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from experiments import report as program
from maxpo.lm.training import _report_data, _report_findings, report
from maxpo.lm.training._report_curves import Curve, chart
from maxpo.lm.training._report_findings import FACT, NOTICE, PROBLEM

CONFIG = {
    "task": {"success": 1.0},
    "rl": {"steps": 40, "eval_k": 8, "max_new_tokens": 32},
}
HOSTILE = "</pre><script>document.title='taken'</script>\x00\x1b[31m\ud83d\u202egnp.exe<img src=x>"
CHROMIUM = shutil.which("chromium")


def line(step, **metrics):
    """A step in which all is as it should be."""
    usual = {
        "mean_reward": 0.25,
        "max_at_k": 0.5,
        "pass_at_k": 0.5,
        "zero_variance_groups": 0.25,
        "entropy": 1.0,
        "completion_length": 8.0,
        "truncated": 0.0,
        "failed": 0.0,
        "failed_raised": 0,
        "failed_timed_out": 0,
    }
    return {"step": step, **usual, **metrics}


def sample(text="no idea", reward=0.0, **fields):
    usual = {"score": reward, "advantage": reward - 0.5, "end": "ended", "failure": None}
    return {"text": text, "reward": reward, "tokens": 3, **usual, **fields}


def group(*completions, step=1, split="train", prompt="2 + 2 =", answer="4"):
    return {
        "step": step,
        "split": split,
        "prompt": prompt,
        "answer": answer,
        "completions": completions,
    }


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(folder, lines=(), groups=(), config=CONFIG, summary=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(folder / "metrics.jsonl", lines)
    if groups:
        write_lines(folder / "completions.jsonl", groups)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def read_one(folder, *arguments, **options):
    (run,) = _report_data.read_runs(make_run(folder, *arguments, **options), 200)
    return run


def text_of(path):
    return path.read_text(encoding="utf-8")


# Rules


ZERO = {"mean_reward": 0.0, "max_at_k": 0.0, "pass_at_k": 0.0}


@pytest.mark.parametrize(
    ("rule", "metrics", "kind", "expected"),
    [
        ("rewards_are_zero", ZERO, PROBLEM, "All rewards are 0 in the last 10 steps."),
        (
            "rewards_are_zero",
            {**ZERO, "truncated": 0.97},
            PROBLEM,
            "All rewards are 0 in the last 10 steps: 97% of completions are truncated at "
            "max_new_tokens = 32.",
        ),
        ("rewards_are_zero", {}, None, ""),
        # Graded rewards may cancel: the best of k tells that they are not all 0.
        ("rewards_are_zero", {"mean_reward": 0.0}, None, ""),
        (
            "verifications_failed",
            {"failed": 1.0},
            PROBLEM,
            "Every verification failed in the last 10 steps.",
        ),
        (
            "verifications_failed",
            {"failed": 0.25},
            PROBLEM,
            "25% of verifications failed in the last 10 steps.",
        ),
        (
            "verifications_failed",
            {"failed": 0.001},
            NOTICE,
            "<1% of verifications failed in the last 10 steps.",
        ),
        ("verifications_failed", {}, None, ""),
        (
            "no_group_differs",
            {"zero_variance_groups": 1.0},
            PROBLEM,
            "No group had rewards that differ in the last 10 steps: there is nothing to learn "
            "from.",
        ),
        (
            "no_group_differs",
            {"zero_variance_groups": 0.9},
            NOTICE,
            "In 90% of the groups all rewards are equal in the last 10 steps: they teach nothing.",
        ),
        ("no_group_differs", {"zero_variance_groups": 1.0, "pass_at_k": 1.0}, None, ""),
        ("no_group_differs", {}, None, ""),
        (
            "all_correct",
            {"zero_variance_groups": 1.0, "pass_at_k": 1.0},
            FACT,
            "Every completion is correct in the last 10 steps: nothing is left to learn.",
        ),
        ("all_correct", {"pass_at_k": 1.0}, None, ""),
        (
            "completions_are_truncated",
            {"truncated": 0.5},
            NOTICE,
            "50% of completions are truncated at max_new_tokens = 32 in the last 10 steps.",
        ),
        (
            "completions_are_truncated",
            {"truncated": 0.25},
            NOTICE,
            "25% of completions are truncated at max_new_tokens = 32 in the last 10 steps.",
        ),
        ("completions_are_truncated", {**ZERO, "truncated": 0.5}, None, ""),
        ("completions_are_truncated", {"truncated": 0.05}, None, ""),
        (
            "entropy_is_gone",
            {"entropy": 0.0625},
            NOTICE,
            "The entropy of a token went from 1 to 0.0625 nats: the completions of a group hardly "
            "differ any more.",
        ),
        ("entropy_is_gone", {"entropy": 0.5}, None, ""),
        (
            "centering",
            {"predicted_variance_ratio": 0.75},
            FACT,
            "Variance of the gradient, maxpo over pkpo_loo_minus_one: 0.75 predicted, means of "
            "the last values.",
        ),
        (
            "centering",
            {"predicted_variance_ratio": 0.75, "variance_ratio": 0.5},
            FACT,
            "Variance of the gradient, maxpo over pkpo_loo_minus_one: 0.75 predicted, 0.5 "
            "measured, means of the last values.",
        ),
        ("centering", {"predicted_variance_ratio": "NaN"}, None, ""),
        ("centering", {}, None, ""),
        (
            "reward_changed",
            {"mean_reward": 0.5},
            FACT,
            "Mean reward went from 0.25 to 0.5, means of the first and the last 10 lines.",
        ),
        (
            "reward_changed",
            {},
            FACT,
            "Mean reward stayed at 0.25, means of the first and the last 10 lines.",
        ),
    ],
)
def test_what_a_rule_says_of_the_last_steps(rule, metrics, kind, expected, tmp_path):
    lines = [line(step) for step in range(1, 21)]
    lines += [line(step, **metrics) for step in range(21, 31)]
    found = getattr(_report_findings, rule)(read_one(tmp_path, lines))
    assert (found and found.kind, found.text if found else "") == (kind, expected)


def test_a_short_run_is_spoken_of_as_one(tmp_path):
    one = read_one(tmp_path / "one", [line(1, **ZERO)])
    assert "in the only step so far." in _report_findings.rewards_are_zero(one).text
    assert _report_findings.reward_changed(one) is None
    three = read_one(tmp_path / "three", [line(step, **ZERO) for step in (1, 2, 3)])
    assert "in all 3 steps so far." in _report_findings.rewards_are_zero(three).text


def test_masked_failures_leave_no_reward_to_call_zero(tmp_path):
    lines = [line(1, **ZERO), *(line(s, mean_reward="NaN", failed=1.0) for s in range(2, 12))]
    run = read_one(tmp_path, [{**each, "max_at_k": "NaN"} for each in lines])
    assert _report_findings.rewards_are_zero(run) is None
    assert _report_findings.verifications_failed(run).kind == PROBLEM


def test_the_first_message_is_quoted(tmp_path):
    failures = [sample(score=None, failure=f"ZeroDivisionError {i}") for i in (1, 2)]
    groups = [group(sample()), group(*failures, step=2)]
    run = read_one(tmp_path, [line(1, failed=0.5)], groups)
    assert _report_findings.verifications_failed(run).quote == "ZeroDivisionError 1"


def test_an_example_shows_a_completion_without_reward(tmp_path):
    failed = sample("never verified", score=None, failure="ValueError")
    run = read_one(tmp_path / "zero", [line(1, **ZERO)], [group(sample("5"), failed)])
    found = _report_findings.example_of_zero(run)
    assert found.quote == "Step 1\nPrompt: 2 + 2 =\n\nCompletion: 5\n\nExpected: 4"
    run = read_one(tmp_path / "some", [line(1)], [group(sample("5"))])
    assert _report_findings.example_of_zero(run) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [("It is 4.", True), ("answer=4", True), ("4.5", False), ("14", False), ("-0.4", False)],
)
def test_the_expected_answer_without_a_reward_is_noticed(text, found, tmp_path):
    groups = [group(*[sample(text)] * 3, *[sample("nothing")] * 9, sample("4", reward=1.0))]
    finding = _report_findings.answers_without_reward(read_one(tmp_path, [line(1)], groups))
    assert (finding is not None) is found
    if finding:
        assert finding.text.startswith("3 of the last 12 completions with reward 0")
        assert finding.quote == f"Expected: 4\n\nCompletion: {text}"


def test_completions_that_are_empty_or_alike_are_noticed(tmp_path):
    run = read_one(tmp_path / "empty", [line(1)], [group(sample(""), sample(" \n"), sample("4"))])
    assert _report_findings.completions_are_empty(run).text == (
        "2 of the last 3 completions on this page are empty."
    )
    assert _report_findings.completions_are_alike(run) is None
    run = read_one(tmp_path / "alike", [line(1)], [group(sample(), sample())])
    assert _report_findings.completions_are_empty(run) is None
    assert "In 1 of the last 1 groups" in _report_findings.completions_are_alike(run).text


def test_held_out_metrics_and_fine_tuning_are_told(tmp_path):
    lines = [line(1), {"step": 1, "eval_pass_at_1": 0.5, "eval_pass_at_16": 0.25}]
    lines += [line(2), {"step": 2, "eval_pass_at_1": 0.5, "eval_pass_at_16": 0.75}]
    run = read_one(tmp_path / "rl", lines)
    found = _report_findings.held_out_changed(run)
    assert found.text == "Held-out pass@16 went from 0.25 to 0.75."
    assert _report_findings.loss_changed(run) is None
    run = read_one(tmp_path / "sft", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}])
    assert _report_findings.loss_changed(run).text == "Loss went from 3 to 1.5."


def test_a_run_that_is_silent_may_have_stopped(tmp_path):
    run = read_one(tmp_path, [line(1)])
    assert _report_findings.silent(run) is None
    found = _report_findings.silent(run._replace(age=7200.0))
    assert found.text == "Nothing was written for 2 hours: it may have stopped."
    assert _report_findings.silent(run._replace(age=7200.0, summary={})) is None


def test_problems_come_first(tmp_path):
    run = read_one(tmp_path, [line(s, **ZERO, truncated=0.97, failed=0.01) for s in range(1, 30)])
    kinds = [finding.kind for finding in _report_findings.findings(run)]
    assert kinds == sorted(kinds, key=(PROBLEM, NOTICE, FACT).index)
    assert kinds[0] == PROBLEM


# Reading


def test_a_run_that_goes_on_is_read_up_to_its_last_whole_line(tmp_path):
    make_run(tmp_path, [line(1), line(2)], [group(sample(), step=1), group(sample(), step=2)])
    whole = {
        name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "completions.jsonl")
    }
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[:-20])
    (run,) = _report_data.read_runs(tmp_path, 200)
    assert [each["step"] for each in run.lines] == [1]
    assert [each.step for each in run.groups] == [1]
    assert run.group_count == 1


def test_lines_that_hold_no_group_are_skipped(tmp_path):
    make_run(tmp_path, [line(1)], [group(sample())])
    with (tmp_path / "completions.jsonl").open("ab") as file:
        file.write(b'nonsense\n[1]\n{"step": 2}\n{"step": "x", "completions": []}\n\n')
        file.write(b'{"step": 3, "completions": [7]}\n{"step": 4, "completions": null}\n')
        file.write(b'{"step": 5, "completions": [{"text": "\xff", "reward": "NaN"}]}\n')
    (run,) = _report_data.read_runs(tmp_path, 200)
    assert [each.step for each in run.groups] == [1, 5]
    assert run.groups[1].completions[0].text == "\ufffd"
    assert run.groups[1].completions[0].reward is None


def test_groups_that_are_kept_are_spread_over_the_steps(tmp_path):
    groups = [group(sample(), step=step) for step in range(1, 11) for _ in range(3)]
    make_run(tmp_path, [line(1)], groups)

    def steps(most):
        (run,) = _report_data.read_runs(tmp_path, most)
        assert run.group_count == 30
        return [each.step for each in run.groups]

    assert steps(10) == list(range(1, 11))
    assert steps(1) == [10]
    assert steps(2) == [1, 10]
    assert steps(4) == [1, 4, 7, 10]
    assert sorted(steps(12)) == sorted([*range(1, 11), 1, 10])
    assert len(steps(30)) == 30


def test_runs_of_a_study_share_the_groups(tmp_path):
    make_run(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / name, [line(1)], [group(sample(), step=step) for step in range(1, 9)])
    found = _report_data.read_runs(tmp_path, 4)
    assert [len(run.groups) for run in found] == [0, 2, 2]


# The page


def test_a_finished_run(tmp_path):
    lines = [line(step, failed_raised=int(step == 3), failed=0.125) for step in range(1, 41)]
    summary = {"table": [{"": "after", "pass@8": 0.5, "pass@8_sem": 0.01}], "scores": [[1.0]]}
    failure = sample(score=None, failure="ValueError: <nothing>")
    make_run(tmp_path, lines, [group(sample(), failure, step=3)], summary=summary)
    (tmp_path / "best_of_k.png").write_bytes(b"\x89PNG\r\n\x1a\nfigure")
    page = text_of(report.write_report(tmp_path))
    assert "finished at step 40 of 40" in page
    assert "0.500 ± 0.010" in page
    assert 'src="data:image/png;base64,iVBORw0KGgpmaWd1cmU="' in page
    assert re.search(r"raised.*<td[^>]*>1</td>", page, re.DOTALL)
    assert "ValueError: &lt;nothing&gt;" in page
    assert "max@8" in page
    assert "rl.max_new_tokens" in page
    for name in ("mean reward", "pass@8", "truncated (share)"):
        assert f'aria-label="{name}"' in page


def test_a_run_that_goes_on_is_not_touched(tmp_path):
    make_run(tmp_path / "run", [line(step) for step in range(1, 8)], [group(sample())])
    (tmp_path / "run" / ".lock").write_text("1")

    def state():
        return {
            path.name: (path.stat().st_mtime_ns, path.read_bytes())
            for path in (tmp_path / "run").iterdir()
        }

    before = state()
    path = report.write_report(tmp_path / "run", tmp_path / "page.html")
    assert state() == before
    assert "at step 7 of 40; last line" in text_of(path)
    report.write_report(tmp_path / "run")
    after = state()
    assert after.pop("report.html")
    assert after == before


def test_a_study_shows_its_runs_side_by_side(tmp_path):
    make_run(tmp_path, config={"methods": ["maxpo:k=8", "rloo"]})
    (tmp_path / "metrics.jsonl").unlink()
    sft = {"sft": {"steps": 9}}
    make_run(tmp_path / "sft", [{"step": 9, "loss": 0.5}], config=sft, summary={})
    for name in ("maxpo_k8-seed0", "maxpo_k8-seed1", "rloo-seed0"):
        metrics = ZERO if "maxpo" in name else {}
        make_run(tmp_path / name, [line(step, **metrics) for step in range(1, 13)])
    page = text_of(report.write_report(tmp_path))
    assert "running: 1 of the 4 runs that were started are finished" in page
    assert "finished at step 9 of 9" in page
    # The two runs in trouble are named once, above what is the matter.
    assert page.count("All rewards are 0 in the last 10 steps.") == 1
    assert '<p class="soft">maxpo_k8-seed0, maxpo_k8-seed1</p><span>All rewards' in page
    # A line for each of three runs, and one color for each of two methods.
    panel = re.search(r'aria-label="mean reward">(.*?)</svg>', page, re.DOTALL)[1]
    assert panel.count('class="smooth"') == 3
    assert len(set(re.findall(r'class="smooth" stroke="([^"]+)"', panel))) == 2
    assert 'aria-label="loss"' in page


def test_groups_that_are_left_out_are_counted(tmp_path):
    make_run(tmp_path, [line(1)], [group(sample(), step=1 + i // 3) for i in range(300)])
    page = text_of(report.write_report(tmp_path))
    assert "200 of 300 groups are on this page, spread over all steps; 100 were left out." in page
    assert page.count('<section class="group"') == 200


def test_completions_come_in_the_order_of_their_advantages(tmp_path):
    completions = [
        sample("middle", advantage=0.0),
        sample("worst", advantage=-0.5, end="truncated"),
        sample("best", 1.0, advantage=0.5),
        sample("broken", score=None, advantage=-0.25, failure="it broke"),
    ]
    page = text_of(report.write_report(make_run(tmp_path, [line(1)], [group(*completions)])))
    assert "4 completions, 1 correct, 1 truncated, 1 failed" in page
    cards = re.findall(r'<article class="completion".*?</article>', page, re.DOTALL)
    texts = [re.search(r"<pre>(\w+)</pre>", card)[1] for card in cards]
    assert texts == ["best", "middle", "broken", "worst"]
    for words, place in (
        ("highest advantage", 0),
        ("&#10003;", 0),
        ("lowest advantage", 3),
        ("badge truncated", 3),
        ("badge failed", 2),
        ("it broke", 2),
    ):
        assert [words in card for card in cards] == [i == place for i in range(4)], words
    colors = [re.search(r"border-color:(#\w+)", card)[1] for card in cards]
    assert colors[1] == colors[3]
    assert len(set(colors)) == 3  # correct, wrong, failed


def test_the_middle_of_a_large_group_is_folded(tmp_path):
    completions = [sample(f"text{i}", advantage=-i / 10) for i in range(16)]
    page = text_of(report.write_report(make_run(tmp_path, [line(1)], [group(*completions)])))
    folded = re.search(r"<summary>8 between them</summary>(.*?)</details>", page, re.DOTALL)[1]
    assert re.findall(r"<pre>(\w+)</pre>", folded) == [f"text{i}" for i in range(4, 12)]


def test_held_out_groups_have_no_marks(tmp_path):
    held_out = group(sample(advantage=None), sample(reward=1.0, advantage=None), split="held_out")
    page = text_of(report.write_report(make_run(tmp_path, [line(1)], [held_out])))
    assert 'data-split="held_out"' in page
    assert "lowest advantage" not in page


class Tags(HTMLParser):
    """The tags of a page, and its text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_nothing_that_a_model_writes_is_more_than_text(tmp_path):
    hostile = group(sample(HOSTILE, failure=HOSTILE), prompt=HOSTILE, answer=HOSTILE)
    config = {**CONFIG, "note": HOSTILE}
    lines = [line(1, **ZERO, failed=0.5, failed_raised=1, **{HOSTILE: 1.0})]
    path = report.write_report(
        make_run(tmp_path, lines, [hostile, {**hostile, "split": HOSTILE}], config=config)
    )
    page = text_of(path)
    tags = Tags(page)
    assert [tag for tag, _ in tags.tags].count("script") == 1
    assert not [attributes for tag, attributes in tags.tags if tag == "img"]
    assert not [name for _, each in tags.tags for name in each if name.startswith("on")]
    shown = "</pre><script>document.title='taken'</script>\\x00\\x1b[31m\\ud83d\\u202egnp.exe"
    assert tags.text.count(shown) >= 4  # prompt, answer, completion, failure
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    policy = next(each["content"] for tag, each in tags.tags if "http-equiv" in each)
    assert policy.startswith("default-src 'none'")
    assert not [each for _, each in tags.tags if each.get("src", "data:")[:5] != "data:"]


def test_long_texts_lose_their_middle(tmp_path):
    text = "a" * 50_000 + "END"
    page = text_of(report.write_report(make_run(tmp_path, [line(1)], [group(sample(text))])))
    assert "44,003 characters left out" in page
    assert "aEND</pre>" in page
    assert len(page) < 60_000


def test_curves_hold_their_values():
    drawn = chart("mean reward", {"a": Curve([0.0, 10.0], [0.0, 1.0], "#123456")})
    # From the lower left corner of the axes to the upper right one.
    assert re.search(r'class="smooth" stroke="#123456" d="M38\.0 130\.0L312\.0 8\.0"', drawn)
    assert drawn.count("<text") == 3 + 2
    single = chart("mean reward", {"a": Curve([5.0], [0.5], "#123456")})
    assert '<circle cx="175.0"' in single
    assert '<path class="smooth"' not in single


# The program


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "RUN: expected the folder of a run, got"),
        (lambda folder: folder.mkdir(), "RUN: expected the folder of a run, with a config.json"),
        (lambda folder: folder.write_text(""), "RUN: expected the folder of a run, got"),
        (make_run, "expected a run that has logged something, got neither"),
        (
            lambda folder: (make_run(folder) / "metrics.jsonl").write_text("7\n"),
            "metrics.jsonl:1: expected a JSON object",
        ),
        (
            lambda folder: (make_run(folder, [line(1)]) / "config.json").write_text("{"),
            "config.json should hold a JSON object",
        ),
    ],
)
def test_bad_folders_are_one_sentence(prepare, message, tmp_path, capsys):
    prepare(tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        program.main([str(tmp_path / "run")])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    make_run(tmp_path / "run", [line(1)])
    with pytest.raises(SystemExit) as stopped:
        program.main([str(tmp_path / "run"), f"--out={tmp_path / 'none' / 'page.html'}"])
    assert stopped.value.code == 1
    assert str(tmp_path / "none" / "page.html") in capsys.readouterr().err


def test_the_program_asks_for_no_device(tmp_path):
    # The training that goes on may hold all of its memory.
    make_run(tmp_path, [line(1)], [group(sample())])
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", str(tmp_path)],
        env={**os.environ, "JAX_PLATFORMS": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    assert done.stderr == ""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ["two", "again"]),
        ("#step=1", ["one"]),
        ("#split=held_out", ["judged"]),
        ("#step=99", ["two", "again"]),
    ],
)
def test_a_browser_shows_one_step(address, expected, tmp_path):
    groups = [
        group(sample(HOSTILE), prompt="one", step=1),
        group(sample(HOSTILE), prompt="two", step=2),
        group(sample(HOSTILE), prompt="again", step=2),
        group(sample(advantage=None), prompt="judged", step=2, split="held_out"),
    ]
    path = report.write_report(make_run(tmp_path / "run", [line(1), line(2)], groups))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--enable-logging=stderr", "--dump-dom", f"{path.as_uri()}{address}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr  # Errors of scripts, and what the policy refused.
    assert "<title>run: report</title>" in done.stdout
    shown = re.findall(
        r'<section class="group"(?![^>]* hidden)[^>]*>.*?<h3>Prompt</h3><pre>(.*?)</pre>',
        done.stdout,
        re.DOTALL,
    )
    assert [html.unescape(prompt) for prompt in shown] == expected
    assert re.search(r'<form id="picker">', done.stdout)
