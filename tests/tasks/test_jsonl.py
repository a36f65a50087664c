"""The user's own problems: numbers in texts, and what may be wrong in a file."""

import json
import math
from fractions import Fraction

import pytest

from maxpo.tasks.answers import numeric_answer, numeric_verifier
from maxpo.tasks.jsonl import make_jsonl_task
from maxpo.tasks.text import Problem

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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72),
        ("#### 72", 72),
        ("1 + 1 = 3\n#### 72", 72),
        ("#### 1\n#### 2", 2),
        ("####72 apples, of 100", 72),
        ("The answer is 72.", 72),
        ("first 5, then 6, so 7!", 7),
        (r"\boxed{8} and then 9", 8),
        (r"\boxed{1} or \boxed{x = 2}", 2),
        (r"$\boxed{-\frac{3}{4}}$", Fraction(-3, 4)),
        (r"\dfrac{1}{3}", Fraction(1, 3)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1,234,567", 1234567),
        (r"1{,}234", 1234),
        ("1,234.50", Fraction(2469, 2)),
        ("it takes 1,2", 2),
        ("it takes 1,2345", 2345),
        ("$5", 5),
        (r"\$5.25", Fraction(21, 4)),
        ("-$5", -5),
        ("$-5", -5),
        ("€ 5", 5),
        ("50%", 50),
        ("12.5 %", Fraction(25, 2)),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("+7", 7),
        ("10-5", 5),
        ("10 - 5", -5),
        ("x=-5", -5),
        ("(2)-5", 5),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("0.1", Fraction(1, 10)),
        ("007", 7),
        ("72.0", 72),
        ("72.", 72),
        ("6e3", 6000),
        ("1.5e-3", Fraction(3, 2000)),
        ("2 eggs", 2),
        ("", None),
        ("no number", None),
        ("####", None),
        ("5 #### none", None),
        (r"5 \boxed{}", None),
        ("1/0", None),
        ("9" * 5000, None),
    ],
)
def test_numeric_answer(text, number):
    assert numeric_answer(text) == number


@pytest.mark.parametrize("number", [0.1, -2.5, 1234.0, 3e-7, 12345678.75])
def test_numeric_answer_reads_what_python_writes(number):
    for text in (repr(number), f"{number:,.10f}", f"{number:e}"):
        assert math.isclose(numeric_answer(text), number, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("#### 72", 1.0),
        ("so it is 72.00", 1.0),
        ("144/2", 1.0),
        ("71.9999999999999999999", 0.0),
        ("72 or 73", 0.0),
        ("1e999999999", 0.0),
        ("", 0.0),
    ],
)
def test_numeric_verifier(completion, reward):
    assert numeric_verifier(Problem("", GSM8K["answer"], {}), completion) == reward


def test_gsm8k_as_it_is(good, tmp_path):
    other = {"question": "What is 1 + 1?", "answer": "#### 2"}
    task = make_jsonl_task(good, write(tmp_path / "held_out.jsonl", other, other))
    assert task.name == "good"
    assert task.train == (Problem(GSM8K["question"], GSM8K["answer"], GSM8K),)
    assert [problem.answer for problem in task.held_out] == ["#### 2"] * 2
    assert task.verifier(task.train[0], GSM8K["answer"]) == 1.0
    assert task.verifier(task.train[0], "#### 2") == 0.0


def test_fields_template_and_numbers_as_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", {"ask": "{1} + 1?", "reply": 2.5})
    task = make_jsonl_task(
        path, path, prompt_field="ask", answer_field="reply", template="Q {x}: {prompt}\nA:"
    )
    assert task.train[0][:2] == ("Q {x}: {1} + 1?\nA:", "2.5")
    assert task.verifier(task.train[0], "5/2") == 1.0


def test_blank_lines_are_skipped_and_unicode_is_kept(tmp_path):
    path = write(
        tmp_path / "a.jsonl", "", GSM8K, "  ", {"question": "¿2 más 1?", "answer": "1"}, ""
    )
    task = make_jsonl_task(path, path)
    assert [problem.prompt for problem in task.train] == [GSM8K["question"], "¿2 más 1?"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_line_endings(tmp_path, ending):
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(GSM8K) + ending).encode())
    assert len(make_jsonl_task(path, path).train) == 1


def test_function_of_the_user(good, tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(problem, completion):\n"
        "    return len(completion) / len(problem.entry['question'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = make_jsonl_task(good, good, answer_field=None, verifier="my_rewards:length")
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
        ([{"question": 1, "answer": "1"}], r"bad\.jsonl:1: field 'question' must be a text, got 1"),
        (
            [{"question": "", "answer": "1"}],
            r"bad\.jsonl:1: field 'question' must be a text, got ''",
        ),
        (
            [{"question": "?", "answer": None}],
            r"bad\.jsonl:1: field 'answer' must be a text or a nu",
        ),
        (
            [{"question": "?", "answer": True}],
            r"bad\.jsonl:1: field 'answer' must be a text or a nu",
        ),
        (
            [{"question": "?", "answer": "x"}],
            r"bad\.jsonl:1: the numeric verifier expected a number",
        ),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_wrong_in_a_file(good, tmp_path, lines, message, held_out):
    path = tmp_path / "bad.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        make_jsonl_task(*((good, path) if held_out else (path, good)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"verifier": "numbers"},
            "must be 'numeric' or 'math' or 'module:function', got 'numbers'",
        ),
        ({"verifier": "json:"}, "must be 'numeric' or 'math' or 'module:function'"),
        ({"verifier": "no_such_module:f"}, "cannot be imported: ModuleNotFoundError"),
        ({"verifier": "json:no_such_function"}, "cannot be imported: AttributeError"),
        ({"verifier": "math:pi"}, "must be a function, got 3.14"),
        ({"template": "no prompt"}, "template must have {prompt} in it, got 'no prompt'"),
        ({"answer_field": None}, "the numeric verifier needs answer_field"),
    ],
)
def test_bad_settings(good, settings, message):
    with pytest.raises(ValueError, match=message):
        make_jsonl_task(good, good, **settings)


def test_missing_file(good, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*missing\.jsonl"):
        make_jsonl_task(good, tmp_path / "missing.jsonl")
