"""Problems in Parquet: rows and their places, folders, and what may be wrong in a file."""

import gzip
import json
import sys

import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from maxpo.lm.tasks.files import make_file_task

ROWS = [
    {"question": "6 * 7?", "answer": "#### 42", "metadata": {"terms": [6, 7], "source": None}},
    {"question": "¿1 + 1?", "answer": "2", "metadata": {"terms": [], "source": "x"}},
    {"question": "2 + 3?", "answer": "5", "metadata": None},
]


def save(path, rows=ROWS, **options):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("name", ["train.parquet", "whatever"])
def test_rows_are_what_was_saved(tmp_path, name):
    path = save(tmp_path / name, row_group_size=2)
    task = make_file_task(path, save(tmp_path / "held_out.parquet", ROWS[:1]))
    assert task.name == name.partition(".")[0]
    assert [problem.entry for problem in task.train] == ROWS
    assert [problem[:2] for problem in task.train] == [
        (row["question"], row["answer"]) for row in ROWS
    ]
    assert [problem.entry for problem in task.held_out] == ROWS[:1]
    assert task.verifier(task.train[0], "so it is 42") == 1.0


def test_what_the_package_datasets_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    assert [problem.entry for problem in make_file_task(path, path).train] == ROWS


def test_the_same_problems_as_of_json_lines(tmp_path):
    lines = tmp_path / "a.jsonl.gz"
    lines.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    task = make_file_task(lines, save(tmp_path / "a.parquet"))
    assert task.train == task.held_out


def test_numbers_are_answers(tmp_path):
    rows = [{"question": "?", "answer": number} for number in (2.5, 3.0)]
    path = save(tmp_path / "a.parquet", rows)
    task = make_file_task(path, path)
    assert [problem.answer for problem in task.train] == ["2.5", "3.0"]
    assert [task.verifier(problem, "5/2") for problem in task.train] == [1.0, 0.0]


def test_maps_are_dicts(tmp_path):
    column = pa.array([[("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int64()))
    table = pa.table({"question": ["?"], "answer": ["1"], "levels": column})
    pq.write_table(table, tmp_path / "a.parquet")
    task = make_file_task(tmp_path / "a.parquet", tmp_path / "a.parquet")
    assert task.train[0].entry["levels"] == {"a": 1, "b": 2}


def test_a_folder_has_the_files_of_a_split_in_order(tmp_path):
    folder = tmp_path / "gsm"
    save(folder / "train-00001-of-00002.parquet", ROWS[2:])
    save(folder / "train-00000-of-00002.parquet", ROWS[:2])
    (folder / "README.md").write_text("no problem")
    task = make_file_task(folder, save(tmp_path / "test.parquet"))
    assert task.name == "gsm"
    assert task.train == task.held_out


def test_a_folder_of_two_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match=r"the folder .* files of one split, got those of test and"
    ):
        make_file_task(tmp_path, tmp_path)


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"the folder .*: expected files \*\.parquet, got none"):
        make_file_task(tmp_path, tmp_path)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_missing_column_is_named_before_rows_are_read(tmp_path, held_out):
    # The first row of the other file has no answer: it would be what is said, had it been read.
    bad = save(tmp_path / "bad.parquet", [{"question": "?", "answer": None}])
    short = save(tmp_path / "short.parquet", [{"problem": "?", "answer": "1", "level": 2}])
    message = r"short\.parquet: no column 'question'; its columns are \['problem', 'answer', 'level"
    with pytest.raises(ValueError, match=message):
        make_file_task(*((bad, short) if held_out else (short, bad)))


def test_every_file_of_a_folder_must_have_the_columns(tmp_path):
    save(tmp_path / "0000.parquet")
    save(tmp_path / "0001.parquet", [{"question": "?"}])
    with pytest.raises(ValueError, match=r"0001\.parquet: no column 'answer'; its columns are"):
        make_file_task(tmp_path, tmp_path)


def test_a_column_twice_is_refused(tmp_path):
    names = ["question", "answer", "answer"]
    columns = [pa.array(["?"]), pa.array(["1"]), pa.array(["2"])]
    pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="expected columns of different names, got 'answer' twice"):
        make_file_task(tmp_path / "a.parquet", tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": None}, "field 'answer': expected a text or a number, got N"),
        ({"question": "", "answer": "1"}, "field 'question': expected a text or messages, got ''"),
        ({"question": "?", "answer": "x"}, "field 'answer': the numeric verifier expected a numb"),
    ],
)
def test_what_is_wrong_in_a_row(tmp_path, row, message):
    path = save(tmp_path / "bad.parquet", [{"question": "?", "answer": "1"}, row])
    with pytest.raises(ValueError, match=rf"bad\.parquet, row 1: {message}"):
        make_file_task(path, path)


def test_a_column_of_floats_with_gaps(tmp_path):
    path = save(tmp_path / "a.parquet", [{"question": "?", "answer": float("nan")}])
    with pytest.raises(ValueError, match=r"row 0: .* finite number, got nan"):
        make_file_task(path, path, verifier="exact")


def test_no_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": []}), path)
    with pytest.raises(ValueError, match=r"a\.parquet is empty"):
        make_file_task(path, path)


def damaged(content, what):
    if what == "cut":
        return content[:-20]
    if what == "first bytes":
        return b"PAR1" + bytes(20)
    if what == "pages":
        return content[:4] + bytes(60) + content[64:]
    return content.replace("¿".encode(), b"\xff\xff")


@pytest.mark.parametrize("what", ["cut", "first bytes", "pages", "no UTF-8"])
def test_what_cannot_be_read_is_named(tmp_path, what):
    path = save(tmp_path / "bad.parquet", compression="none", use_dictionary=False)
    path.write_bytes(damaged(path.read_bytes(), what))
    with pytest.raises(ValueError, match=r"bad\.parquet: expected a Parquet file that") as error:
        make_file_task(path, path)
    assert "\n" not in str(error.value)


def test_without_its_package_the_extra_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'maxpo\[parquet\]'"):
        make_file_task(path, path)


def test_what_verl_saves(tmp_path):
    """Messages as prompts, and the answer within another field."""
    row = {
        "prompt": [{"role": "user", "content": "6 * 7?"}],
        "reward_model": {"style": "rule", "ground_truth": "42"},
    }
    path = save(tmp_path / "a.parquet", [row])
    fields = {"prompt_field": "prompt", "answer_field": "reward_model.ground_truth"}
    (problem,) = make_file_task(path, path, **fields).train
    assert (problem.prompt, problem.answer) == ("6 * 7?", "42")
    assert problem.messages == ({"role": "user", "content": "6 * 7?"},)
    with pytest.raises(ValueError, match=r"in 'reward_model': no field 'gold'; its fields are"):
        make_file_task(path, path, **{**fields, "answer_field": "reward_model.gold"})
    with pytest.raises(ValueError, match=r"no column 'reward\.gold'"):
        make_file_task(path, path, **{**fields, "answer_field": "reward.gold"})
    named = save(tmp_path / "b.parquet", [{"prompt": "6 * 7?", "reward_model.gold": "42"}])
    fields["answer_field"] = "reward_model.gold"
    assert make_file_task(named, named, **fields).train[0].answer == "42"
