"""From files to what is printed and written."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maxpo.evaluate import evaluate
from maxpo.evaluate.__main__ import main
from maxpo.evaluate._figure import draw
from maxpo.order_statistics import powers_up_to
from maxpo.runs import UsageError


def write(path, groups):
    """Problem to scores, one line for each sample."""
    lines = [json.dumps({"problem": p, "score": x}) for p, xs in groups.items() for x in xs]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Two methods; the second lacks problem d, has more samples of c, and has e."""
    return {
        "base": write(tmp_path / "base.jsonl", {"a": [1, 0], "b": [0, 0], "c": [1, 1], "d": [0]}),
        "new": write(
            tmp_path / "new.jsonl", {"c": [1, 1, 0, 1], "a": [1, 1], "b": [0, 1], "e": [1]}
        ),
    }


def test_methods_and_differences(files):
    found = evaluate(files).pass_at_k
    assert found.curves["base"].k.tolist() == [1, 2, 4]
    assert found.curves["base"].value.tolist()[:2] == [(0.5 + 0 + 1 + 0) / 4, (1 + 0 + 1) / 3]
    assert found.curves["base"].left_out.tolist() == [0, 1, 4]
    assert found.curves["new"].value.tolist() == [(0.75 + 1 + 0.5 + 1) / 4, 1, 1]
    assert found.curves["new"].left_out.tolist() == [0, 1, 3]
    change = found.differences["new"]
    differences = [1 - 0.5, 0.5 - 0, 0.75 - 1]  # of a, b, c
    assert change.value[0] == pytest.approx(np.mean(differences))
    assert change.error[0] == pytest.approx(np.std(differences, ddof=1) / np.sqrt(3))
    assert change.value[1] == pytest.approx((0 + 1 + 0) / 3)
    assert change.problems.tolist() == [3, 3, 0]
    assert change.left_out.tolist() == [2, 2, 5]
    assert list(found.differences) == ["new"]


def test_k_beyond_the_samples_is_left_out_and_not_clamped(files):
    found = evaluate(files, k=[3, 1, 3]).pass_at_k.curves["base"]
    assert found.k.tolist() == [1, 3]
    assert found.problems.tolist() == [4, 0]
    assert np.isnan(found.value[1])


def test_seeds_are_averaged_and_samples_of_one_model_pooled(tmp_path):
    seeds = [
        write(tmp_path / "0.jsonl", {"a": [1, 1], "b": [0, 0]}),
        write(tmp_path / "1.jsonl", {"a": [0, 0], "b": [0, 0], "c": [1, 1]}),
    ]
    averaged = evaluate({"x": seeds}).pass_at_k.curves["x"]
    # Two models of which one solves a: the best of two samples of one of them does so in half of
    # the cases. Problem c is not known of both.
    assert averaged.k.tolist() == [1, 2]
    assert averaged.value.tolist() == [0.25, 0.25]
    assert averaged.left_out.tolist() == [1, 1]
    pooled = evaluate({"x": seeds}, pool=True).pass_at_k.curves["x"]
    assert pooled.k.tolist() == [1, 2, 4]
    assert pooled.value[1] == pytest.approx(((1 - 1 / 6) + 0 + 1) / 3)
    assert pooled.left_out.tolist() == [0, 0, 1]


def test_samples_without_a_score(tmp_path):
    path = write(tmp_path / "x.jsonl", {"a": [None, 0.5], "b": [None, None]})
    found = evaluate({"x": path}, success=0.5)
    assert found.sources["x"][0].unscored == 3
    assert found.graded
    assert found.pass_at_k.curves["x"].value.tolist() == [0.25, 0.5]
    assert found.max_at_k.curves["x"].value.tolist() == [0.5, 0.5]
    assert found.max_at_k.curves["x"].left_out.tolist() == [1, 1]


def test_wrong_arguments(files):
    with pytest.raises(UsageError, match="files: expected at least one, got none"):
        evaluate({})
    with pytest.raises(UsageError, match="files: expected at least one of x, got none"):
        evaluate({"x": []})
    with pytest.raises(UsageError, match=r"files: expected different files of x, got .* twice"):
        evaluate({"x": [files["base"], files["base"]]})
    with pytest.raises(UsageError, match="k: expected whole numbers of at least 1, got 0"):
        evaluate(files, k=[1, 0])
    with pytest.raises(UsageError, match=r"k: expected whole numbers of at least 1, got 1\.5"):
        evaluate(files, k=[1.5])
    for wrong in (True, "4", 4.0, None):
        with pytest.raises(UsageError, match=rf"k: expected whole numbers .* 1, got {wrong!r}$"):
            evaluate(files, k=[wrong])
    with pytest.raises(UsageError, match=r"k: expected whole numbers .* 1, got 4\.0$"):
        evaluate(files, k=4.0)
    with pytest.raises(UsageError, match=r"k: expected whole numbers up to 2\*\*53, got 1000"):
        evaluate(files, k=10**30)
    with pytest.raises(UsageError, match="k: expected at least one number of samples, got none"):
        evaluate(files, k=[])
    for wrong in (float("nan"), "1", None, 1j):
        message = f"success: expected a finite number, got {wrong!r}"
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            evaluate(files, success=wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": 3}, "files: expected a path, or labels with paths, got 3"),
        ({"files": ["a", "b"]}, "files: expected a path, or labels with paths, got ['a', 'b']"),
        ({"files": {3: "a"}}, "files: expected labels that are text, got 3"),
        ({"files": {"x": 3}}, "files: expected a path or several of x, got 3"),
        ({"files": {"x": [None]}}, "files: expected paths of x, got None"),
        ({"problem": ["a"]}, "problem: expected the name of a field, got ['a']"),
        ({"score": 3}, "score: expected the name of a field, got 3"),
        ({"where": "step=3"}, "where: expected fields with values, got 'step=3'"),
        ({"where": {"s": [3]}}, "where: expected a field with text or a number, got 's': [3]"),
    ],
)
def test_arguments_of_other_types(files, arguments, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        evaluate(**{"files": files, **arguments})


def test_scores_of_32_bits_reach_what_they_are_meant_to_reach(tmp_path):
    # The nearest to 0.9, 0.1 and 0.7 of 32 bits: below it, above it, below it.
    scores = [0.8999999761581421, 0.10000000149011612, 0.699999988079071]
    path = write(tmp_path / "x.jsonl", {"a": scores})
    for success, correct in ((0.9, 1), (0.7, 2), (0.1, 3), (0.9001, 0), (1e300, 0), (-1e300, 3)):
        found = evaluate(path, success=success, k=1).pass_at_k.curves[path]
        assert found.value.item() == pytest.approx(correct / 3)
    zeros = write(tmp_path / "y.jsonl", {"a": [0.0]})
    assert evaluate(zeros, success=1e-60).pass_at_k.curves[zeros].value.item() == 0


def test_what_python_may_pass(files, tmp_path):
    path = files["base"]
    for alone in (path, Path(path)):
        assert evaluate(alone).pass_at_k.curves[path].k.tolist() == [1, 2]
    for k in (2, np.int64(2), [2], (2,), {2}, np.array([2, 2])):
        assert evaluate(files, k=k).pass_at_k.curves["base"].value.tolist() == [2 / 3]
    first, _, last = dumps(tmp_path)
    found = evaluate({"x": (Path(first), Path(last))}, where={"step": 30})
    assert found.pass_at_k.curves["x"].value[0] == 1


def test_equal_values_have_no_error_and_no_difference(tmp_path, capsys):
    # 2 of 3, 4 of 6 and 8 of 12 are not the same number after rounding.
    groups = {str(n): [1] * (2 * n) + [0] * n for n in (1, 2, 4, 5, 7, 11)}
    thirds = {p: [x / 3 for x in xs] for p, xs in groups.items()}
    main([write(tmp_path / "x.jsonl", groups), "--k=1"])
    assert capsys.readouterr().out.splitlines()[3] == "     1  0.6667 ± 0"
    evaluation = evaluate(
        {
            "x": write(tmp_path / "x.jsonl", thirds),
            "y": write(tmp_path / "y.jsonl", {p: 2 * xs for p, xs in thirds.items()}),
        },
        k=1,
    )
    change = evaluation.max_at_k.differences["y"]
    assert (change.value.item(), change.error.item()) == (0, 0)
    # What is small beside the values, but larger than rounding, is kept.
    write(tmp_path / "z.jsonl", {p: [1 + 1e-9 * int(p)] for p in groups})
    found = evaluate(tmp_path / "z.jsonl", k=1).max_at_k.curves[str(tmp_path / "z.jsonl")]
    expected = 1e-9 * np.std([1, 2, 4, 5, 7, 11], ddof=1) / np.sqrt(6)
    assert found.error.item() == pytest.approx(expected, rel=1e-4)


def test_what_is_printed(files, capsys):
    main([f"{label}={path}" for label, path in files.items()])
    expected = f"""\
base: {files["base"]}: 7 samples of 4 problems (problem: problem; score: score)
new: {files["new"]}: 9 samples of 4 problems (problem: problem; score: score)

pass@k  base         new          new - base
     1  0.38 ± 0.24  0.81 ± 0.12  0.25 ± 0.25
     2  0.67 ± 0.33  1.000 ± 0    0.33 ± 0.33
     4  -            1.000 ± -    -
left out, of 4 problems of base: 1 at k=2; 4 at k=4
left out, of 4 problems of new: 1 at k=2; 3 at k=4
left out, of 5 problems of new - base: 2 at k=1,2; 5 at k=4
"""
    assert capsys.readouterr().out == expected


def test_files_of_an_evaluation(files, tmp_path, capsys):
    folder = tmp_path / "deep" / "out"
    words = [f"{label}={path}" for label, path in files.items()]
    main([*words, f"--out={folder}", "--k=1,2,8"])
    found = json.loads((folder / "evaluation.json").read_text())
    assert "max@k" not in found
    curve = found["pass@k"]["curves"]["base"]
    assert curve["k"] == [1, 2, 8]
    assert curve["value"] == [0.375, pytest.approx(2 / 3), None]
    assert curve["left_out"] == [0, 1, 4]
    assert found["pass@k"]["differences"]["new"]["problems"] == [3, 3, 0]
    assert found["sources"]["new"][0]["samples"] == 9
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "evaluation.png"]


def test_graded_scores_have_a_panel_and_a_table_of_max_at_k(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", {"a": [0.25, 0.75], "b": [1.0, 0.0]})
    main([path, f"--out={tmp_path}"])
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["max@k"]["curves"][path]["value"] == [0.5, 0.875]
    assert "max@k" in capsys.readouterr().out


def test_the_figure(files):
    curves, differences = draw(evaluate(files)).axes
    for axis in (curves, differences):
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "2", "4"]
        assert axis.get_xlabel() == "k (bands: ± 2 standard errors)"
    # Those of base at k = 1, whose error is that of 0.5, 0, 1 and 0.
    error = np.std([0.5, 0, 1, 0], ddof=1) / 2
    at_1 = [y for x, y in curves.collections[0].get_paths()[0].vertices if x == 1]
    assert (min(at_1), max(at_1)) == pytest.approx((0.375 - 2 * error, 0.375 + 2 * error))
    drawn = {line.get_label(): line.get_ydata() for line in curves.lines}
    assert drawn["base"].tolist() == pytest.approx([0.375, 2 / 3, np.nan], nan_ok=True)
    assert drawn["new"].tolist() == [0.8125, 1, 1]
    level, change = differences.lines
    assert list(level.get_ydata()) == [0, 0]
    assert change.get_ydata().tolist() == pytest.approx([0.25, 1 / 3, np.nan], nan_ok=True)


def test_numbers_do_not_wait_for_matplotlib(files, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "maxpo.evaluate._figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    main([files["base"], f"--out={tmp_path}"])
    assert (tmp_path / "evaluation.json").exists()
    assert not (tmp_path / "evaluation.png").exists()
    assert (
        "evaluation.png is not drawn: import of matplotlib.axes halted" in capsys.readouterr().err
    )


def run(*words):
    try:
        main(words)
    except SystemExit as error:
        return error.code
    return 0


def test_mistakes_are_one_sentence(files, tmp_path, capsys):
    assert run("none.jsonl") == 2
    assert capsys.readouterr().err == (
        "error: none.jsonl: expected a file to read, got no such file or directory\n"
    )
    assert run(files["base"], files["base"]) == 2
    assert run(files["base"], "--k=1,x") == 2
    assert "argument --k: expected whole numbers, got 1,x" in capsys.readouterr().err
    assert run(files["base"], "--where=x") == 2
    assert "argument --where: expected FIELD=VALUE, got x" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(files["base"], f"--out={tmp_path / 'file'}") == 2
    file = tmp_path / "file"
    assert capsys.readouterr() == ("", f"error: --out: expected a folder, got the file {file}\n")
    assert run(files["base"], f"--out={file / 'below'}") == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {file / 'below'}: Not a directory\n"
    assert "0.38 ± 0.24" in captured.out


def test_a_label_may_have_a_pattern(tmp_path, capsys):
    for name in ("b1", "b0", "other"):
        write(tmp_path / f"{name}.jsonl", {"a": [1]})
    main([f"b={tmp_path}/b*.jsonl"])
    read = [line.split(": ")[:2] for line in capsys.readouterr().out.splitlines()[:2]]
    assert read == [["b", f"{tmp_path}/b0.jsonl"], ["b", f"{tmp_path}/b1.jsonl"]]
    assert run(f"b={tmp_path}/c*.jsonl") == 2
    message = f"error: b: expected files that match {tmp_path}/c*.jsonl, got none\n"
    assert capsys.readouterr().err == message
    assert run(f"{tmp_path}/c*.jsonl") == 2
    message = f"error: files: expected files that match {tmp_path}/c*.jsonl, got none\n"
    assert capsys.readouterr().err == message
    path = write(tmp_path / "b[0].jsonl", {"a": [0]})  # Which is also a pattern of b0.jsonl.
    main([f"b={path}"])
    assert f"b: {path}: 1 samples" in capsys.readouterr().out


def test_files_without_a_common_problem(tmp_path, capsys):
    write(tmp_path / "x.jsonl", {7: [0.5, 0.25]})
    write(tmp_path / "y.jsonl", {"7": [0.5, 0.25]})
    main([f"x={tmp_path}/x.jsonl", f"y={tmp_path}/y.jsonl"])
    out = capsys.readouterr().out
    assert 'y - x: the two have no problem in common (7 is not the same as "7")' in out
    assert "left out" not in out


def test_no_correct_sample_is_explained_where_scores_are_graded(tmp_path, capsys):
    note = "no score is as high as --success, so no sample is correct"
    path = write(tmp_path / "x.jsonl", {"a": [0.5, 0.25]})
    for words, noted in (([], True), (["--success=0.5"], False)):
        main([path, *words])
        assert (note in capsys.readouterr().out) == noted
    main([write(tmp_path / "zeros.jsonl", {"a": [0, 0]})])
    assert note not in capsys.readouterr().out


def test_a_path_may_have_an_equals_sign(tmp_path, capsys):
    folder = tmp_path / "k=4"
    folder.mkdir()
    path = write(folder / "x.jsonl", {"a": [1]})
    main([path])
    assert f"{path}: 1 samples of 1 problems" in capsys.readouterr().out


def test_options_reach_the_evaluation(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    records = [{"id": i % 2, "mine": i, "split": "ab"[i // 4]} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, records)))
    main(
        [
            "x=" + str(path),
            "--problem=id",
            "--score=mine",
            "--where=split=b",
            "--success=6",
            "--k=1",
        ]
    )
    out = capsys.readouterr().out
    assert "4 samples of 2 problems (problem: id; score: mine)" in out
    assert "1  0.5000 ± 0" in out  # 6 of 4 and 6, 7 of 5 and 7
    assert "1  5.50 ± 0.50" in out


def test_no_jax(files):
    code = (
        "import sys; from maxpo.evaluate.__main__ import main; main(sys.argv[1:]); "
        "print(sorted({'jax', 'flax', 'optax', 'matplotlib', 'chex'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, files["base"]]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_program_starts_as_a_module(files):
    command = [sys.executable, "-m", "maxpo.evaluate", files["base"]]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pass@k" in found.stdout


def dumps(folder):
    """Validations of verl after steps 10, 20 and 30: a is solved by one, two, then all samples."""
    names = []
    for step, scores in ((10, [1, 0, 0]), (20, [1, 1, 0]), (30, [1, 1, 1])):
        path = folder / f"{step}.jsonl"
        path.write_text(
            "".join(json.dumps({"input": "a", "score": x, "step": step}) + "\n" for x in scores)
        )
        names.append(str(path))
    return names


@pytest.mark.parametrize("pool", [False, True])
def test_files_of_one_method_are_of_one_step(tmp_path, pool):
    names = dumps(tmp_path)
    message = "^x: expected records of one step, got 10, 20, 30; choose one by --where=step=VALUE$"
    with pytest.raises(UsageError, match=message):
        evaluate({"x": names}, pool=pool)
    with pytest.raises(UsageError, match=r"^x: expected records of step=40, got 10, 20, 30$"):
        evaluate({"x": names}, pool=pool, where={"step": "40"})
    for step, value, used in (("last", 1, 2), ("20", 2 / 3, 1)):
        found = evaluate({"x": names}, pool=pool, where={"step": step})
        assert found.pass_at_k.curves["x"].value[0] == pytest.approx(value)
        assert [str(source.path) for source in found.sources["x"]] == [names[used]]
        assert [str(path) for path in found.unused["x"]] == names[:used] + names[used + 1 :]
    assert len(evaluate({"x": names}, pool=pool, where={"step": "*"}).sources["x"]) == 3


def test_methods_may_be_of_different_steps(tmp_path, capsys):
    first, _, last = dumps(tmp_path)
    main([f"before={first}", f"after={last}", "--k=1"])
    assert "1  0.3333 ± -  1.000 ± -  0.6667 ± -" in capsys.readouterr().out


def test_files_that_are_not_used_are_named(tmp_path, capsys):
    dumps(tmp_path)
    main([f"x={tmp_path}/*.jsonl", "--where=step=last", f"--out={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"x: {tmp_path}/30.jsonl: 3 samples of 1 problems (problem: input; score: score)",
        f"x: {tmp_path}/10.jsonl: not used, it has no such record as --where asks for",
        f"x: {tmp_path}/20.jsonl: not used, it has no such record as --where asks for",
    ]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["unused"] == {"x": [f"{tmp_path}/10.jsonl", f"{tmp_path}/20.jsonl"]}


def test_a_pattern_may_match_folders(tmp_path, capsys):
    for name in ("k4-seed1", "k4-seed0", "k8-seed0", "k4-seed0/deep"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "scores.jsonl", {"a": [1]})
    main([f"x={tmp_path}/k4-seed*/scores.jsonl", f"y={tmp_path}/k4-*/**/scores.jsonl"])
    read = [line.split(": ")[:2] for line in capsys.readouterr().out.splitlines()[:5]]
    shallow = [["x", f"{tmp_path}/k4-seed{seed}/scores.jsonl"] for seed in (0, 1)]
    deep = [
        ["y", f"{tmp_path}/{name}/scores.jsonl"]
        for name in ("k4-seed0/deep", "k4-seed0", "k4-seed1")
    ]
    assert read == [*shallow, *deep]


def test_what_has_no_label_is_a_method_whatever_its_name(tmp_path, capsys):
    (tmp_path / "k=4").mkdir()
    paths = [write(tmp_path / "k=4" / f"{i}.jsonl", {"a": [i]}) for i in (0, 1)]
    main([f"{tmp_path}/k=4/*.jsonl", "--k=1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == paths
    assert lines[3].split("  ")[:3] == ["pass@k", *paths]


def test_words_that_are_no_file_and_no_label(files, tmp_path, capsys):
    for word in ("x=", f"={files['base']}"):
        assert run(word) == 2
        assert capsys.readouterr().err == f"error: files: expected LABEL=FILE, got {word}\n"
    assert run(files["base"], files["new"], "--pool") == 2
    assert capsys.readouterr().err == (
        f"error: --pool: expected files of one label, as in x={files['base']} x={files['new']}, "
        "got 2 without a label\n"
    )
    assert run(files["base"], "--pool") == 0
    assert run(files["base"], "--where=step=1", "--where=split=x", "--where=step=2") == 2
    assert capsys.readouterr().err == "error: --where: expected one value of step, got several\n"


def test_one_file_under_two_names(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(files["base"])
    for other in ("base.jsonl", "./base.jsonl", f"../{tmp_path.name}/base.jsonl", "link.jsonl"):
        message = f"files: expected different files of x, got {Path(other)} twice"
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            evaluate({"x": [files["base"], other]})
    same = evaluate({"x": files["base"], "y": files["base"]})
    assert same.pass_at_k.differences["y"].value[0] == 0


def program(*words, lines):
    command = [sys.executable, "-m", "maxpo.evaluate", *words]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


def test_standard_input(files):
    lines = Path(files["base"]).read_text()
    found = program("base=-", f"new={files['new']}", "--k=1", lines=lines)
    assert found.stdout.startswith("base: -: 7 samples of 4 problems")
    assert "1  0.38 ± 0.24  0.81 ± 0.12  0.25 ± 0.25" in found.stdout
    wrong = program("-", lines='{"problem": 1, "score": "x"}')
    assert wrong.stderr.startswith("error: -:1: score: expected a finite number")
    for words in (("-", "-"), ("x=-", "y=-")):
        twice = program(*words, lines=lines)
        assert (twice.returncode, twice.stdout) == (2, "")
        assert re.match("error: .*expected .*, got ", twice.stderr)


def test_nobody_reads_what_is_printed(files, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "maxpo.evaluate", files["base"], f"--out={tmp_path}"]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, "")
    assert (tmp_path / "evaluation.json").exists()


def test_curves_end_with_all_samples_where_problems_have_as_many(tmp_path):
    def ks(*sizes):
        path = write(tmp_path / "x.jsonl", {str(p): [0] * size for p, size in enumerate(sizes)})
        return evaluate({"x": path}).pass_at_k.curves["x"].k.tolist()

    assert ks(12, 12) == [1, 2, 4, 8, 12]
    assert ks(12, 11) == [1, 2, 4, 8]
    assert ks(16, 12) == [1, 2, 4, 8, 16]
    for n in range(1, 20):
        assert ks(n) == list(powers_up_to(n))  # The k of the trainer's curves.
    few, many = (write(tmp_path / f"{n}.jsonl", {"a": [0] * n}) for n in (5, 6))
    for files in ({"x": few, "y": many}, {"x": [few, many]}):
        assert evaluate(files).pass_at_k.curves["x"].k.tolist() == [1, 2, 4]
    pooled = evaluate({"x": [few, many]}, pool=True)
    assert pooled.pass_at_k.curves["x"].k.tolist() == [1, 2, 4, 8, 11]


def test_numbers_of_the_figure_do_not_run_into_one_another(tmp_path):
    path = write(tmp_path / "x.jsonl", {"a": [0] * 65, "b": [1] * 65})
    axis = draw(evaluate(path)).axes[0]
    # 65 is the last k, and 64 too close to it.
    shown = [tick.get_text() for tick in axis.get_xticklabels()]
    assert shown == ["1", "2", "4", "8", "16", "32", "65"]
    assert list(axis.lines[0].get_xdata()) == [1, 2, 4, 8, 16, 32, 64, 65]
    few = write(tmp_path / "few.jsonl", {"a": [0, 1, 0], "b": [1, 1, 0]})
    for k, expected in ((None, ["1", "2", "3"]), (2, ["2"])):
        axis = draw(evaluate(few, k=k)).axes[0]
        assert [tick.get_text() for tick in axis.get_xticklabels()] == expected


def test_ctrl_c_ends_it_by_its_signal_without_a_traceback(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # A shell that has put the tests in its background lets them ignore the signal.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from maxpo.evaluate.__main__ import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(pipe)]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with program, pipe.open("w"):  # Opens once the program does.
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
    assert (program.returncode, said) == (-signal.SIGINT, "\ninterrupted\n")
