"""The user's own problems: what is read, and what may be wrong in a file."""

import gzip
import json
import sys

import pytest

from maxpo.lm.tasks.answers import _math_verify, math_verifier
from maxpo.lm.tasks.files import make_file_task
from maxpo.lm.tasks.text import Problem, digest

GSM8K = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many altogether?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = 72.\n#### 72",
}


def write(path, *lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.jsonl", GSM8K)


def test_gsm8k_as_it_is(good, tmp_path):
    other = {"question": "What is 1 + 1?", "answer": "#### 2"}
    task = make_file_task(good, write(tmp_path / "held_out.jsonl", other, other))
    assert task.name == "good"
    assert task.train == (Problem(GSM8K["question"], GSM8K["answer"], GSM8K),)
    assert [problem.answer for problem in task.held_out] == ["#### 2"] * 2
    assert task.verifier(task.train[0], GSM8K["answer"]) == 1.0
    assert task.verifier(task.train[0], "#### 2") == 0.0


def test_fields_template_and_numbers_as_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", {"ask": "{1} + 1?", "reply": 2.5})
    task = make_file_task(
        path, path, prompt_field="ask", answer_field="reply", template="Q {x}: {prompt}\nA:"
    )
    assert task.train[0][:2] == ("Q {x}: {1} + 1?\nA:", "2.5")
    assert task.verifier(task.train[0], "5/2") == 1.0


def test_blank_lines_are_skipped_and_unicode_is_kept(tmp_path):
    path = write(
        tmp_path / "a.jsonl", "", GSM8K, "  ", {"question": "¿2 más 1?", "answer": "1"}, ""
    )
    task = make_file_task(path, path)
    assert [problem.prompt for problem in task.train] == [GSM8K["question"], "¿2 más 1?"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_line_endings(tmp_path, ending):
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(GSM8K) + ending).encode())
    assert len(make_file_task(path, path).train) == 1


def test_function_of_the_user(good, tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(problem, completion):\n"
        "    return len(completion) / len(problem.entry['question'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = make_file_task(good, good, answer_field=None, verifier="my_rewards:length")
    assert task.train[0].answer == ""
    assert task.verifier(task.train[0], GSM8K["question"]) == 1.0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"bad\.jsonl is empty"),
        (["", ""], r"bad\.jsonl is empty"),
        (
            [GSM8K, "", '{"question": '],
            r"bad\.jsonl:3: expected a JSON object, got Expecting value",
        ),
        ([GSM8K, "[1]"], r"bad\.jsonl:2: expected a JSON object, got \[1\]"),
        (["\udcff"], r"bad\.jsonl:1: expected a JSON object, got .*utf-8"),
        (
            [{"prompt": "", "answer": ""}],
            r"bad\.jsonl:1: no field 'question'; its fields are \['pr",
        ),
        (
            [GSM8K, {"question": "?"}],
            r"bad\.jsonl:2: no field 'answer'; its fields are \['question",
        ),
        (
            [{"question": 1, "answer": "1"}],
            r"bad\.jsonl:1: field 'question': expected a text or messages, got 1",
        ),
        (
            [{"question": "", "answer": "1"}],
            r"bad\.jsonl:1: field 'question': expected a text or messages, got ''",
        ),
        (
            [{"question": "?", "answer": None}],
            r"bad\.jsonl:1: field 'answer': expected a text or a nu",
        ),
        (
            [{"question": "?", "answer": True}],
            r"bad\.jsonl:1: field 'answer': expected a text or a nu",
        ),
        (
            [{"question": "?", "answer": "x"}],
            r"bad\.jsonl:1: field 'answer': the numeric verifier expected a nu",
        ),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_wrong_in_a_file(good, tmp_path, lines, message, held_out):
    path = tmp_path / "bad.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        make_file_task(*((good, path) if held_out else (path, good)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"verifier": "numbers"},
            "verifier: expected 'exact' or 'numeric' or 'math' or 'module:function', got 'numb",
        ),
        (
            {"verifier": "json:"},
            "verifier: expected 'exact' or 'numeric' or 'math' or 'module:function'",
        ),
        ({"verifier": "no_such_module:f"}, "cannot be imported: ModuleNotFoundError"),
        ({"verifier": "json:no_such_function"}, "cannot be imported: AttributeError"),
        ({"verifier": "math:pi"}, "expected a function, got 3.14"),
        ({"template": "no prompt"}, "template: expected {prompt} in it, got 'no prompt'"),
        ({"answer_field": None}, "the numeric verifier needs answer_field"),
    ],
)
def test_bad_settings(good, settings, message):
    with pytest.raises(ValueError, match=message):
        make_file_task(good, good, **settings)


@pytest.mark.parametrize("answer", ["1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_no_answer(good, tmp_path, answer):
    path = write(tmp_path / "a.jsonl", f'{{"question": "?", "answer": {answer}}}')
    with pytest.raises(ValueError, match=r"a\.jsonl:1: field 'answer': .*finite number, got -?inf"):
        make_file_task(good, path, verifier="exact")


def test_a_verifier_may_be_a_function(good):
    def verify(problem, completion):
        return float(completion in problem.prompt)

    task = make_file_task(good, good, verifier=verify, answer_field=None)
    assert task.verifier is verify


def test_missing_file(good, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*missing\.jsonl"):
        make_file_task(good, tmp_path / "missing.jsonl")


LINE = json.dumps({"question": "1", "answer": "1"}).encode() + b"\n"


def compress(content: bytes) -> bytes:
    """Without the time of day, which would go into the ids of tests: each process has its own."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (compress(LINE * 3), 3),
        (compress(LINE) + compress(LINE), 2),
        (b"\xef\xbb\xbf" + LINE, 1),
        (compress(b"\xef\xbb\xbf" + LINE), 1),
        (b'{"question": "\\ud83d\\ude00", "answer": 1}', 1),  # Both halves of an emoji.
        (LINE.replace(b"}", b', "x": ' + b"[" * 500 + b"]" * 500 + b"}"), 1),
    ],
)
def test_what_can_be_read_by_its_content(tmp_path, content, size):
    path = tmp_path / "whatever"
    path.write_bytes(content)
    task = make_file_task(path, path)
    assert len(task.train) == size
    assert digest(task.train) == digest(task.held_out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINE.decode().encode("utf-16"), ":1: expected JSON lines in UTF-8, got UTF-16"),
        (LINE.decode().encode("utf-16-be"), ":1: expected a JSON object, got NUL bytes, as of UT"),
        (LINE.decode().encode("utf-32"), ":1: expected JSON lines in UTF-8, got UTF-32"),
        (compress(b"PAR1" + bytes(20)), ":1: .* in UTF-8, got a Parquet file within gzip"),
        (b"PK\x03\x04" + bytes(20), ":1: expected JSON lines in UTF-8, got a zip archive"),
        (compress(compress(LINE)), "expected JSON lines in UTF-8, got gzip within gzip"),
        (compress(LINE * 9)[:-9], "expected JSON lines, .*ended before the end-of-stream"),
        (compress(LINE)[:-8] + bytes(8), "expected JSON lines, plain or in gzip, .*CRC"),
        (LINE + b"\0\0\n", ":2: expected a JSON object, got NUL bytes"),
        (b"[" + LINE.strip() + b"]", r":1: .*, got \[.*, an array; write each object on a line"),
        (b"[\n" + LINE + b"]", ":1: .*, got the start of an array; write each object on a line"),
        (b'{\n"question": "1"}', ":1: .* in column 2 of '{'; an object must be whole on its line"),
        (LINE.strip() + b",\n", ":1: expected a JSON object, got Extra data in column 33 of '{"),
        (b'{"question": "1", "answer": "1",}', ":1: expected a JSON object, got .* of '{"),
        (b"question,answer\n1,1\n", ":1: expected a JSON object, got the text 'question,answer'"),
        (b"1,1\n", ":1: expected a JSON object, got the text '1,1'"),
        (LINE + b'{"question": "1", "answer": NaN}', ":2: expected a JSON object, got NaN, which"),
        (b'{"x": -Infinity}', ":1: expected a JSON object, got -Infinity, which is no JSON"),
        (b'{"x": 1, "y": {"a": 1, "a": 2}}', ":1: expected a JSON object, got the field 'a' twice"),
        (b"[" * 10**5, ":1: expected a JSON object, got brackets that are nested too deeply"),
        (b'{"x": ' + b"7" * 5000 + b"}", "got an integer of 5000 digits, more than 4000"),
        (
            b'{"question": "a \\ud83d", "answer": "1"}',
            r":1: .* half a character, \\ud83d, after '.*a '",
        ),
        (b'{"x": {"\\uDE00": 1}}', r":1: expected a JSON object, got half a character, \\ude00"),
        ("{'é': 1}".encode("latin-1"), ":1: expected a JSON object, got .*utf-8: byte 0xe9"),
    ],
)
def test_what_is_no_json_lines_is_named(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.jsonl.*{message}") as error:
        make_file_task(path, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "answer", [r"2\sqrt{3}", "(3, 5)", "10:30", "Option 2: no", "So she pays $5.", "3 to 5", "x"]
)
def test_a_gold_answer_must_be_one_number(good, tmp_path, answer):
    path = write(tmp_path / "bad.jsonl", GSM8K, {"question": "?", "answer": answer})
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: field 'answer': the numeric verif"):
        make_file_task(good, path)


def test_math_reads_what_numeric_does_not(good, tmp_path):
    pytest.importorskip("math_verify")
    path = write(tmp_path / "math.jsonl", {"question": "?", "answer": r"2\sqrt{3}"})
    task = make_file_task(good, path, verifier="math")
    assert task.verifier is math_verifier
    assert task.verifier(task.held_out[0], r"so \boxed{\sqrt{12}}") == 1.0
    write(path, {"question": "?", "answer": "Option 2: no"})
    with pytest.raises(ValueError, match=r"math\.jsonl:1: field 'answer': the math verifier expec"):
        make_file_task(good, path, verifier="math")
    with pytest.raises(ValueError, match="the math verifier needs answer_field"):
        make_file_task(good, path, verifier="math", answer_field=None)


def test_math_without_its_package_names_the_extra(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    _math_verify.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'maxpo\[math\]'"):
        make_file_task(good, good, verifier="math")


def test_a_digest_tells_problems_apart():
    entries = [
        {"a": 1, "b": [2, {"c"}]},
        {"b": [2, {"c"}], "a": 1},  # The same.
        {"a": True, "b": [2, {"c"}]},
        {"a": 1, "b": [[2], {"c"}]},
        {"a": 1, "b": [2, {"d"}]},
        {"a": "1", "b": [2, {"c"}]},
        {"a": 1, "b": 2, "c": {"c"}},
    ]
    found = [digest([Problem("1", "2", entry)]) for entry in entries]
    assert found[0] == found[1]
    assert len(set(found)) == len(found) - 1
    one, other = Problem("1", "2", {}), Problem("12", "", {})
    assert len({digest(of) for of in ([one], [other], [one, other], [other, one])}) == 4
