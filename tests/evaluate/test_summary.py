"""Summaries of runs, against what the trainer says of the same scores."""

import json
import re

import numpy as np
import pytest

from maxpo.evaluate import evaluate
from maxpo.evaluate.__main__ import main
from maxpo.lm.tasks.verification import FAILURES, Scores
from maxpo.lm.training.evaluation import curve
from maxpo.lm.training.grading import Grading, deciding, marked, summarized
from maxpo.runs import UsageError
from maxpo.runs._files import write_json


def run(folder, scores, *, held_out=None, **others):
    """The files of a run that ended with these scores of held-out problems."""
    folder.mkdir()
    path = folder / "summary.json"
    write_json(path, {"scores": scores, "steps": 200, "best": None, **others})
    if held_out is not None:
        write_json(folder / "config.json", {"digests": {"held_out": held_out}})
    return str(path)


def test_pass_and_max_are_those_of_the_trainer(tmp_path):
    rng = np.random.default_rng(0)
    shape = (7, 6)
    correct = rng.integers(0, 2, shape).astype(np.float32)
    found = Scores(
        rewards=np.float32(0.9) * correct + rng.random(shape, np.float32) / 4,
        valid=rng.random(shape) < 0.8,
        failures=dict.fromkeys(FAILURES, 0),
        parts={"right": np.float32(0.9) * correct},
        decides="right",
    )
    assert not found.valid.all()
    path = run(tmp_path / "run", **summarized(found))
    passes, bests = evaluate(path, success=0.9)[1:3]
    expected = Grading(0.9, binary=False).correct(deciding(found))
    for metric, values, binary in ((passes, expected, True), (bests, marked(found), False)):
        of_trainer = curve(values[None], binary=binary)
        of_file = metric.curves[path]
        assert of_file.k.tolist() == list(of_trainer.k) == [1, 2, 4, 6]
        assert of_file.value == pytest.approx(of_trainer.value, rel=1e-6)
        assert of_file.error == pytest.approx(of_trainer.error, rel=1e-5)


def test_what_a_summary_says(tmp_path, capsys):
    before = run(tmp_path / "before", [[0, 1, "NaN"], [0, 0, 0]])
    after = run(tmp_path / "after", [[1, 1, 0], ["NaN", 1, 0]])
    main([f"before={before}", f"after={after}", "--k=1"])
    out = capsys.readouterr().out
    assert f"{before}: 6 samples of 2 problems, 1 without a score" in out
    # 1 of 3 and 0 of 3, then 2 of 3 and 1 of 3.
    assert "1  0.17 ± 0.17  0.50 ± 0.17  0.3333 ± 0" in out
    parts = run(tmp_path / "parts", [[1.5, 0.5], [1.25, "NaN"]], deciding=[[1, 0], [1, "NaN"]])
    main([parts, "--k=1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1 without a score (problem: order; score: scores; success: deciding)")
    assert lines[3].split() == ["1", "0.5000", "±", "0"]
    assert lines[6].split()[:2] == ["1", "1.12"]


def test_numbers_that_decide_are_not_the_scores(tmp_path):
    path = run(tmp_path / "x", [[0, 1]], deciding=[[1, 1]])
    found = evaluate(path, k=1)
    assert found.graded
    assert (found.pass_at_k.curves[path].value, found.max_at_k.curves[path].value) == (1, 0.5)


def test_runs_are_compared_on_the_same_held_out_problems(tmp_path):
    one = run(tmp_path / "one", [[0, 1], [1, 1]], held_out="2 problems, sha256:aa")
    same = run(tmp_path / "same", [[0, 1], [1, 0]], held_out="2 problems, sha256:aa")
    other = run(tmp_path / "other", [[0, 1], [1, 0]], held_out="2 problems, sha256:bb")
    silent = run(tmp_path / "silent", [[0, 1], [1, 0]])
    more = run(tmp_path / "more", [[0, 1]] * 3)
    assert evaluate({"x": [one, same, silent]}).pass_at_k.curves["x"].problems.tolist() == [2, 2]
    expected = f"expected the held-out problems of {one}, 2 problems, sha256:aa"
    for files, got in (
        ({"x": one, "y": other}, f"{other}: {expected}, got 2 problems, sha256:bb"),
        ({"x": [silent, one], "y": other}, f"{other}: {expected}, got 2 problems, sha256:bb"),
        ({"x": [one, more]}, f"{more}: {expected}, got 3 problems"),
        (
            {"x": more, "y": silent},
            f"{silent}: expected the held-out problems of {more}, 3 problems, got 2 problems",
        ),
    ):
        with pytest.raises(UsageError, match=f"^{re.escape(got)}$"):
            evaluate(files)
    # Problems of a run are not those that another file numbers.
    numbered = tmp_path / "numbered.jsonl"
    numbered.write_text('{"problem": 0, "score": 1}\n{"problem": 1, "score": 1}\n')
    apart = evaluate({"x": one, "y": numbered}).pass_at_k.differences["y"]
    assert apart.problems.tolist() == [0, 0]


def test_summaries_that_cannot_be_read(tmp_path):
    path = tmp_path / "summary.json"

    def message(scores=((1, 0),), *, arguments=None, **others):
        write_json(path, {"scores": scores, **others})
        with pytest.raises(UsageError) as found:
            evaluate(path, **(arguments or {}))
        return str(found.value).removeprefix(f"{path}: ")

    wrong = "expected a finite number, a boolean or null, got"
    assert message([[1, "x"]]) == f"scores: {wrong} 'x'"
    assert message([[1], 2]) == "scores: expected a list of lists, got something else"
    assert message(deciding=[[1]]) == "deciding: expected as many numbers as scores has, got others"
    for name in ("score", "problem"):
        expected = f"{name}: expected none for the summary of a run, got x"
        assert message(arguments={name: "x"}) == expected
    expected = "expected records of step=last, got records without that field"
    assert message(arguments={"where": {"step": "last"}}) == expected
    # The summary of a study has the curves of its runs, and no scores.
    write_json(path, {"pass": {"k": [1]}})
    with pytest.raises(UsageError, match=r"problem: expected one of the fields .*, got pass; name"):
        evaluate(path)
    path.write_text('{"problem": "a", "scores": [[1, 0]]}')
    with pytest.raises(UsageError, match=r"1: score: expected one of .*, got problem, "):
        evaluate(path)
    line = json.dumps({"scores": [[1, 0]]})
    path.write_text(f"{line}\n")
    assert evaluate(path).sources[str(path)][0].samples == 2
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(UsageError, match="expected the summary of one run, got several records"):
        evaluate(path)
    path.write_text('{\n  "scores": [\n')
    cut = "json:1: expected a whole JSON object on this line, or one in all lines, got {$"
    with pytest.raises(UsageError, match=cut):
        evaluate(path)
