"""Conversations as prompts: what is read, what the template is of, and what is refused."""

import json

import pytest

from maxpo.lm.tasks.files import make_file_task
from maxpo.lm.tasks.messages import make_messages
from maxpo.lm.tasks.text import Problem, digest

SYSTEM = {"role": "system", "content": "Answer with a number."}
FIRST = {"role": "user", "content": "6 * 7?"}
REPLY = {"role": "assistant", "content": "42"}
SECOND = {"role": "user", "content": "And 6 * 8?"}


def write(path, prompt):
    path.write_text(json.dumps({"prompt": prompt, "answer": "48"}))
    return path


def test_a_problem_has_the_messages_and_the_last_question(tmp_path):
    path = write(tmp_path / "a.jsonl", [SYSTEM, FIRST, REPLY, SECOND])
    task = make_file_task(path, path, prompt_field="prompt", template="{prompt} {}")
    (problem,) = task.train
    assert problem.prompt == "And 6 * 8? {}"
    asked = {"role": "user", "content": "And 6 * 8? {}"}
    assert problem.messages == (SYSTEM, FIRST, REPLY, asked)
    assert problem.entry["prompt"] == [SYSTEM, FIRST, REPLY, SECOND]
    assert task.verifier(problem, "48") == 1.0


def test_a_text_has_no_messages(tmp_path):
    path = write(tmp_path / "a.jsonl", "6 * 8?")
    assert make_file_task(path, path, prompt_field="prompt").train[0].messages == ()


def test_a_table_of_messages(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    # The field of one message is a field of all, None in the others.
    rows = [{"prompt": [{**SYSTEM, "name": None}, FIRST], "answer": "42"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    assert make_file_task(path, path, prompt_field="prompt").train[0].messages == (SYSTEM, FIRST)


def test_texts_of_parts_are_put_together():
    parts = [{"type": "text", "text": "6 *"}, {"type": "text", "text": " 7?"}]
    assert make_messages([{"role": "user", "content": parts}]) == (FIRST,)


def test_a_tool_may_have_the_last_word():
    tool = {"role": "tool", "content": "48"}
    assert make_messages([FIRST, REPLY, tool]) == (FIRST, REPLY, tool)


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"expected a list of messages, got \[\]"),
        (["6 * 7?"], "message 0: expected the fields role and content, got '6"),
        ([FIRST, {"role": "user"}], "message 1: expected the fields role and content, got {'role"),
        ([{**FIRST, "name": "x"}], "message 0: expected the fields role and content, got {'role"),
        ([{"role": "human", "content": "?"}], "message 0: role: expected one of system, .*'human'"),
        ([{"role": ["user"], "content": "?"}], r"message 0: role: expected .*, got \['user'\]"),
        (user(3), "message 0: content: expected a text or a list of parts, got 3"),
        (user([3]), "message 0: part 0: expected the fields type and text, got 3"),
        (
            user([{"type": "text", "text": "a"}, {"type": "image", "text": "b"}]),
            "message 0: part 1: expected a part of type 'text' with a text, got {'type': 'image'",
        ),
        (user([{"type": "text", "text": 3}]), "message 0: part 0: expected a part of type"),
        ([SYSTEM], "expected a message of the user with a text, got none at last"),
        (user(""), "expected a message of the user with a text, got an empty one at last"),
        ([FIRST, REPLY], "expected messages that wait for an answer, got the assistant's as the l"),
    ],
)
def test_what_is_refused(tmp_path, prompt, message):
    path = write(tmp_path / "bad.jsonl", prompt)
    with pytest.raises(ValueError, match=rf"bad\.jsonl:1: field 'prompt': {message}") as error:
        make_file_task(path, path, prompt_field="prompt")
    assert "\n" not in str(error.value)


def test_a_digest_sees_the_messages():
    problem = Problem("6 * 7?", "42", {"level": 1})
    names = {
        digest([problem._replace(messages=messages)])
        for messages in ((), (FIRST,), (SYSTEM, FIRST), (FIRST, SYSTEM))
    }
    assert len(names) == 4
