"""What is read from files, and what is said of those that cannot be read."""

import gzip
import json
import re

import numpy as np
import pytest

from maxpo.evaluate._reading import Reader
from maxpo.runs import UsageError


def write(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def read(path, problem=None, score=None, **chosen):
    """Problem to scores."""
    reader = Reader(problem, score, chosen)
    (scores,) = reader("x", [path]).scores
    samples = scores.samples
    return {
        name: samples.score[samples.problem == number].tolist()
        for name, number in reader.numbers.items()
        if number in samples.problem
    }


RECORDS = [
    {"problem_id": "a", "score": 0.5, "text": "é\u2028"},
    {"problem_id": 7, "score": 1},
    {"problem_id": "a", "score": True},
]
FOUND = {"a": [0.5, 1.0], 7: [1.0]}


def test_json_lines(tmp_path):
    assert read(write(tmp_path / "scores.jsonl", RECORDS)) == FOUND


def test_blank_lines_are_skipped_and_the_last_needs_no_end(tmp_path):
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    path = tmp_path / "scores.txt"
    path.write_bytes("\n\r\n".join(["\ufeff", *lines, *lines[:1]]).encode())
    assert read(path) == {"a": [0.5, 1.0, 0.5], 7: [1.0]}


def test_a_json_list(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(RECORDS, indent=2))
    assert read(path) == FOUND


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.json"])
def test_gzip(tmp_path, name):
    text = json.dumps(RECORDS) if name == "scores.json" else "\n".join(map(json.dumps, RECORDS))
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read(path) == FOUND


def test_a_file_of_many_blocks(tmp_path):
    rng = np.random.default_rng(0)
    groups = {f"problem {p}": rng.random(3).tolist() for p in range(2000)}
    records = [
        {"task_id": name, "score": x, "text": "x" * int(rng.integers(0, 2000))}
        for name, group in groups.items()
        for x in group
    ]
    assert read(write(tmp_path / "scores.jsonl", records)) == groups


SCORES = {
    "1": 1.0,
    "-2.5e-1": -0.25,
    "true": 1.0,
    "false": 0.0,
    '"True"': 1.0,
    '"false"': 0.0,
    '"0.5"': 0.5,
    "null": np.nan,
    "NaN": np.nan,
    '"NaN"': np.nan,
}


@pytest.mark.parametrize(("text", "value"), SCORES.items())
def test_what_a_score_may_be(tmp_path, text, value):
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"prompt": "a", "score": {text}}}\n')
    assert read(path)["a"] == pytest.approx([value], nan_ok=True)


def test_fields_by_name(tmp_path):
    path = write(
        tmp_path / "scores.jsonl",
        [
            {"set": "x", "id": 1, "score": 0.0, "mine": 0.25},
            {"set": "y", "id": 1, "score": 0.0, "mine": 0.75},
        ],
    )
    assert read(path, "id", "mine") == {1: [0.25, 0.75]}
    assert read(path, "set,id", "mine") == {("x", 1): [0.25], ("y", 1): [0.75]}


def test_chats_are_problems(tmp_path):
    def chat(text):
        return [{"role": "system", "content": "Calculate."}, {"role": "user", "content": text}]

    swapped = [{"content": x["content"], "role": x["role"]} for x in chat("6 * 7?")]
    records = [
        {"prompt": chat("6 * 7?"), "reward": 1},
        {"prompt": chat("1 + 1?"), "reward": 0.5},
        {"prompt": swapped, "reward": 0},
        {"prompt": json.dumps(swapped, sort_keys=True), "reward": 0.25},
        {"prompt": {"role": "user"}, "reward": 0.75},
    ]
    path = write(tmp_path / "scores.jsonl", records)
    assert list(read(path).values()) == [[1.0, 0.0], [0.5], [0.25], [0.75]]


def test_fields_within_fields(tmp_path):
    records = [
        {"doc": {"id": 7, "set": "x"}, "result": {"score": 0.5}},
        {"doc": {"id": 7, "set": "y"}, "result": {"score": None}, "doc.id": 8},
        {"doc": {"id": 9, "set": "x"}, "result": {"score": [1, 0]}},
    ]
    path = write(tmp_path / "scores.jsonl", records)
    assert str(read(path, "doc.id", "result.score")) == "{7: [0.5], 8: [nan], 9: [1.0, 0.0]}"
    assert read(path, "doc.id,doc.set", "result.score", **{"doc.set": "x"}) == {
        (7, "x"): [0.5],
        (9, "x"): [1.0, 0.0],
    }
    nested = [{"problem": 1, "completions": [{"result": {"score": 0.25}}]}]
    assert read(write(tmp_path / "nested.jsonl", nested), None, "result.score") == {1: [0.25]}
    with pytest.raises(UsageError, match=r"1: doc.name: .* got a record that has only doc, result"):
        read(path, "doc.name", "result.score")
    with pytest.raises(UsageError, match=r"1: doc.set.x: .* got a record that has only"):
        read(path, "doc.id", "doc.set.x")


def test_a_record_may_have_a_list_of_scores(tmp_path):
    records = [{"problem": "a", "correct": [True, False]}, {"problem": "b", "correct": [1, None]}]
    found = read(write(tmp_path / "scores.jsonl", records))
    assert found["a"] == [1.0, 0.0]
    assert found["b"] == pytest.approx([1.0, np.nan], nan_ok=True)


def harness(doc_id, filter, value, metric="exact_match"):
    """A line of lm-evaluation-harness, without the fields that are texts."""
    resps = {"resps": [["8"]], "filtered_resps": ["8"], "doc_hash": "e3", "prompt_hash": "b0"}
    return {"doc_id": doc_id, **resps, "filter": filter, "metrics": [metric], metric: value}


def test_lm_evaluation_harness(tmp_path):
    records = [harness(i, f, float(i == 1)) for f in ("strict", "flexible") for i in (0, 1)]
    path = write(tmp_path / "samples_gsm8k.jsonl", records)
    assert read(path, filter="strict") == {0: [0.0], 1: [1.0]}
    message = 'expected records of one filter, got "strict", "flexible"; choose one by --where'
    with pytest.raises(UsageError, match=message):
        read(path)
    other = [harness(0, "none", 0.75, metric="rouge")]
    assert read(write(tmp_path / "other.jsonl", other)) == {0: [0.75]}


def test_several_metrics_of_lm_evaluation_harness(tmp_path):
    record = harness(0, "none", 1.0, "acc") | {"metrics": ["acc", "acc_norm"], "acc_norm": 0.0}
    path = write(tmp_path / "samples.jsonl", [record])
    assert read(path, score="acc_norm") == {0: [0.0]}
    with pytest.raises(UsageError, match=r"jsonl:1: metrics: expected one, got acc, acc_norm"):
        read(path)


def test_a_list_of_lm_evaluation_harness_is_no_list_of_samples(tmp_path):
    # IFEval scores the instructions of one answer; other metrics are pairs for their aggregation.
    ifeval = harness(0, "none", [True, False], metric="inst_level_strict_acc")
    pair = harness(0, "none", [-7.5, 3], metric="word_perplexity") | {"filtered_resps": [-7.5]}
    bare = {"doc_id": 0, "metrics": ["acc"], "acc": [1, 0]}
    for record in (ifeval, pair, bare):
        path = write(tmp_path / "samples.jsonl", [record])
        message = f"{path}:1: {record['metrics'][0]}: expected one value for each answer, got a "
        with pytest.raises(UsageError, match=f"^{re.escape(message)}list of 2$"):
            read(path)


def test_a_list_for_the_answers_that_a_filter_of_lm_evaluation_harness_keeps(tmp_path):
    record = harness(0, "take_3", [1, 0, 1]) | {"resps": [["8", "9", "8", "7"]]}
    path = write(tmp_path / "samples.jsonl", [record | {"filtered_resps": [["8", "9", "8"]]}])
    assert read(path) == {0: [1.0, 0.0, 1.0]}
    # One score for all repeats, as of a majority vote.
    voted = [harness(0, "vote", 1.0) | {"resps": [["8", "9", "8", "7"]]}]
    assert read(write(tmp_path / "voted.jsonl", voted)) == {0: [1.0]}


def task(path, *, docs="abc", targets="xyz"):
    """Samples of a task, a record for each of its documents."""
    hashes = zip(docs, targets, strict=True)
    records = [
        harness(i, "none", 1.0) | {"doc_hash": 9 * doc, "target_hash": 9 * target}
        for i, (doc, target) in enumerate(hashes)
    ]
    return write(path, records)


def test_one_doc_id_of_two_documents(tmp_path):
    paths = [
        task(tmp_path / "samples_gsm8k_2026.jsonl"),
        task(tmp_path / "samples_other_2026.jsonl", docs="abd"),
        task(tmp_path / "samples_gsm8k_cot_2026.jsonl", targets="xwz"),
        task(tmp_path / "samples_gsm8k_2027.jsonl"),
    ]
    message = (
        f"{paths[1]}:3: doc_hash: expected cccccccc as of doc_id 2 in {paths[0]}:3, got dddddddd; "
        "read the samples of one task, or name by --problem=doc.FIELD what tells its documents "
        "apart"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Reader(None, None, {})("x", paths[:2])
    with pytest.raises(UsageError, match="2: target_hash: expected yyyyyyyy as of"):
        Reader(None, None, {})("x", [paths[0], paths[2]])
    assert len(Reader(None, None, {})("x", [paths[0], paths[3]]).scores) == 2
    # Two ways to ask for the same documents can be compared; other documents cannot.
    reader = Reader(None, None, {})
    reader("x", paths[:1])
    reader("y", paths[2:3])
    with pytest.raises(UsageError, match="3: doc_hash: expected cccccccc"):
        reader("z", paths[1:2])
    # What is named apart is not told apart by its place in a task.
    assert len(Reader("doc_hash", None, {})("x", paths[:2]).scores) == 2


def test_verl(tmp_path):
    records = [
        {"input": "6*7?", "output": "42", "gts": "42", "score": 1.0, "step": 10, "reward": 1.0},
        {"input": "6*7?", "output": "41", "gts": "42", "score": 0.0, "step": 10, "reward": 0.0},
        {"input": "1+1?", "output": "2", "gts": "2", "score": 1.0, "step": 10, "reward": 1.0},
    ]
    assert read(write(tmp_path / "10.jsonl", records)) == {"6*7?": [1.0, 0.0], "1+1?": [1.0]}


def test_human_eval(tmp_path):
    records = [
        {"task_id": "HumanEval/0", "completion": "", "result": "passed", "passed": True},
        {"task_id": "HumanEval/0", "completion": "", "result": "timed out", "passed": False},
    ]
    path = write(tmp_path / "samples.jsonl_results.jsonl", records)
    assert read(path) == {"HumanEval/0": [1.0, 0.0]}


def journal(step, split, prompt, *scores):
    completions = [{"text": "x", "score": score, "reward": 0.0} for score in scores]
    of_line = {"step": step, "split": split, "prompt": prompt, "answer": "a"}
    return {**of_line, "completions": completions}


def test_the_last_step_is_that_of_the_split(tmp_path):
    lines = [
        journal(5, "held_out", "p", 0.0, 1.0),
        journal(20, "held_out", "p", 0.5, None),
        journal(20, "held_out", "q", 0.25, 0.75),
        journal(100, "train", "p", 1.0, 1.0),
    ]
    path = write(tmp_path / "completions.jsonl", lines)
    found = read(path, split="held_out", step="last")
    assert found["p"] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert found["q"] == [0.25, 0.75]
    assert read(path, split="held_out", step="5") == {"p": [0.0, 1.0]}
    assert read(path, split="train") == {"p": [1.0, 1.0]}
    with pytest.raises(UsageError, match="expected records of one step, got 5, 20; choose"):
        read(path, split="held_out")
    with pytest.raises(UsageError, match='of split=test, got "held_out", "train"'):
        read(path, split="test", step="5")


def test_all_steps_may_be_asked_for(tmp_path):
    records = [{"problem": "a", "score": step, "step": step} for step in (0, 1)]
    assert read(write(tmp_path / "scores.jsonl", records), step="*") == {"a": [0.0, 1.0]}


GOOD = '{"problem": "a", "score": 1}'
BROKEN = {
    "cut": (
        '{"problem": "a", "sc',
        '2: expected a whole JSON object on this line, got {"problem": "a", "sc',
    ),
    "a list": ("[1, 2]", r"2: expected a whole JSON object on this line, got \[1, 2\]"),
    "two on a line": (f"{GOOD}, {GOOD}", "2: expected a whole JSON object on this line, got"),
    "lists on a line": ("{}],[{}", r"2: expected a whole JSON object on this line, got {}\],\[{}"),
    "lists without end": (
        '{"problem": "a", "score": ' + "[" * 10**5,
        r'2: expected a whole JSON object on this line, got {"problem": "a", "score": \[+\.\.\.$',
    ),
    "too many digits": (
        f'{{"problem": "a", "score": {"1" * 5000}}}',
        "2: expected a whole JSON object on this line, got ",
    ),
    "no score": (
        '{"problem": "a", "text": "x"}',
        "2: score: expected a finite number, a boolean or null, "
        "got a record that has only problem, text",
    ),
    "text as score": ('{"problem": "a", "score": "good"}', "2: score: .* got 'good'"),
    "infinity": ('{"problem": "a", "score": Infinity}', "2: score: .* got inf"),
    "an object as score": ('{"problem": "a", "score": {"x": 1}}', r"2: score: .* got {'x': 1}"),
    "a number too large": (f'{{"problem": "a", "score": {"9" * 400}}}', "2: score: .* got 9999"),
    "a list in a list": ('{"problem": "a", "score": [[1]]}', r"2: score: .* got \[1\]"),
    "no problem": ('{"score": 1}', "2: problem: .* got a record that has only score"),
    "not a number as problem": (
        '{"problem": NaN, "score": 1}',
        "2: problem: expected text, a number, a list or an object, got nan",
    ),
    "a boolean as problem": ('{"problem": true, "score": 1}', "2: problem: .* got True"),
    "null as problem": ('{"problem": null, "score": 1}', "2: problem: .* got None"),
}


@pytest.mark.parametrize(("line", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(UsageError, match=f"{re.escape(str(path))}:{message}"):
        read(path)


def test_two_halves_of_a_record_are_no_record(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"problem": "a"\n"score": 1}}\n{GOOD}, {GOOD}\n')
    with pytest.raises(UsageError, match=r'jsonl:1: expected a whole JSON .* got {"problem": "a"$'):
        read(path)


def test_lines_are_counted_over_blocks_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("maxpo.evaluate._records.BLOCK", 1)
    path = tmp_path / "scores.jsonl"
    path.write_text(f"\n{GOOD}\n\n{GOOD}\n[]\n")
    with pytest.raises(
        UsageError, match=r"jsonl:5: expected a whole JSON object on this line, got \[\]"
    ):
        read(path)


def test_a_place_in_a_list_is_its_index(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text('[{"problem": "a", "score": 1},\n {"problem": "a", "score": "x"}]')
    with pytest.raises(UsageError, match=r"scores\.json\[1\]: score: .* got 'x'"):
        read(path)
    path.write_text("[\n1,]")
    with pytest.raises(UsageError, match="json:2: expected a whole JSON list, got "):
        read(path)
    path.write_text("[" * 10**5)
    with pytest.raises(UsageError, match=r"json: expected a JSON list, got one nested too deeply$"):
        read(path)
    path.write_text(f"[{'1' * 5000}]")
    with pytest.raises(UsageError, match=r"json: expected numbers, got one of too many digits$"):
        read(path)
    path.write_text("[1]")
    with pytest.raises(UsageError, match=r"json\[0\]: expected a JSON object, got 1"):
        read(path)


def test_files_without_what_is_needed(tmp_path):
    with pytest.raises(UsageError, match=r"none\.jsonl: expected a file to read, got no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="expected a file, got a folder"):
        read(tmp_path)
    path = tmp_path / "scores.jsonl"
    for text, message in {
        "": "expected at least one record, got none",
        "\n\n": "expected at least one record, got none",
        '{"problem": "a", "score": []}': "expected at least one score, got none",
        '{"id": 1, "score": 1}': "problem: expected one of the fields .*, got id, score; name",
        '{"problem": 1, "rating": 1}': "score: expected one of the fields .*, got problem, rating",
    }.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=rf"jsonl(:1)?: {message}"):
            read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="expected text in UTF-8, got the byte 0xff"):
        read(path)


def test_a_gzip_file_that_is_cut(tmp_path):
    path = tmp_path / "scores.jsonl.gz"
    path.write_bytes(gzip.compress(f"{GOOD}\n".encode() * 1000)[:-20])
    with pytest.raises(UsageError, match="gz: expected a whole gzip file, got one that is damaged"):
        read(path)


def test_a_file_is_known_by_its_content(tmp_path):
    lines = "\n".join(map(json.dumps, RECORDS)).encode()
    array = b"\xef\xbb\xbf\n " + json.dumps(RECORDS).encode()
    for name, content in {
        "plain.jsonl.gz": lines,
        "zipped.jsonl": gzip.compress(lines),
        "lines.json": lines,
        "list.jsonl": array,
        "zipped list": gzip.compress(array),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert read(path) == FOUND, name


def test_completions_of_a_later_line_must_be_a_list(tmp_path):
    lines = [journal(1, "train", "p", 1.0), {**journal(1, "train", "p"), "completions": 3}]
    path = write(tmp_path / "completions.jsonl", lines)
    with pytest.raises(UsageError, match="2: completions: expected a list of objects, got 3"):
        read(path)


def test_files_of_a_label_have_the_same_fields(tmp_path):
    def of(name, *, key="problem", field="score"):
        return write(tmp_path / f"{name}.jsonl", [{key: "a", field: 1}])

    one, reward, task_id = of("one"), of("two", field="reward"), of("three", key="task_id")
    message = (
        f"x: expected one field with the score in all files, got score in {one} and reward in "
        f"{reward}; name one by --score"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Reader(None, None, {})("x", [one, reward])
    with pytest.raises(UsageError, match=r"with the problem in all .* task_id in .* by --problem$"):
        Reader(None, None, {})("x", [one, task_id])
    # Of two labels each has its own.
    reader = Reader(None, None, {})
    assert reader("x", [one]).scores[0].fields.score == "score"
    assert reader("y", [reward]).scores[0].fields.score == "reward"


def test_one_of_several_tasks_in_a_file(tmp_path):
    records = [
        harness(0, "none", score) | {"task": name, "doc_hash": name}
        for name, score in (("a", 1.0), ("b", 0.0))
    ]
    path = write(tmp_path / "samples.jsonl", records)
    assert read(path, task="b") == {0: [0.0]}
    with pytest.raises(UsageError, match=r"2: doc_hash: expected a as of doc_id 0 in .*, got b;"):
        read(path)
