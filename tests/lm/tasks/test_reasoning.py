"""Problems of reasoning-gym: which they are, their prompts, and what their scorers say."""

import contextlib
import json
import pickle
import random
import sys
from fractions import Fraction

import pytest

pytest.importorskip("reasoning_gym")

from maxpo.lm.tasks import reasoning
from maxpo.lm.tasks.reasoning import (
    ReasoningVerifier,
    make_reasoning_task,
    parse_options,
    reasoning_names,
)

COUNTDOWN = {
    "min_numbers": 3,
    "max_numbers": 3,
    "min_value": 1,
    "max_value": 9,
    "min_target": 1,
    "max_target": 99,
}
START = reasoning._Entries
SHORT = "{metadata[numbers]:,}={metadata[target]}:"


def countdown(**changes):
    settings = {
        "train_size": 30,
        "held_out_size": 10,
        "seed": 0,
        "template": SHORT,
        "options": COUNTDOWN,
    }
    return make_reasoning_task("countdown", **(settings | changes))


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Entries of all tests come from one process, whose start takes longer than most tests."""
    with START() as entries, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reasoning, "_Entries", lambda: contextlib.nullcontext(entries))
        yield


@pytest.fixture(scope="module")
def task():
    return countdown()


def test_sizes_and_name(task):
    assert (task.name, len(task.train), len(task.held_out)) == ("countdown", 30, 10)


def test_all_prompts_differ(task):
    assert len({problem.prompt for problem in (*task.train, *task.held_out)}) == 40


def test_same_arguments_same_problems(task):
    again = countdown()
    assert (again.train, again.held_out) == (task.train, task.held_out)


@pytest.mark.parametrize("neighbor", [1, 2, 40])
def test_another_seed_gives_other_problems(task, neighbor):
    # In reasoning-gym, problem i of seed s is problem 0 of seed s + i.
    theirs = {problem.prompt for problem in countdown(seed=neighbor).train}
    assert len(theirs & {problem.prompt for problem in task.train}) < 5


def test_held_out_problems_do_not_depend_on_the_number_to_train_on(task):
    more = countdown(train_size=40)
    assert more.held_out == task.held_out
    assert more.train[:30] == task.train


def test_a_small_data_set_is_shared_without_overlap():
    # Products of two digits: few prompts, so both sets draw most of them.
    task = make_reasoning_task(
        "products",
        train_size=50,
        held_out_size=50,
        seed=0,
        options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    )
    assert len({problem.prompt for problem in (*task.train, *task.held_out)}) == 100


def test_prompt_and_answer_follow_the_templates(task):
    for problem in task.train:
        numbers, target = problem.prompt[:-1].split("=")
        assert [int(number) for number in numbers.split(",")] == problem.entry["metadata"][
            "numbers"
        ]
        # An oracle of the answer that is not the package's: exact arithmetic.
        exact = "".join(f"Fraction({c})" if c.isdigit() else c for c in problem.answer)
        assert eval(exact, {"Fraction": Fraction}) == int(target)


def test_default_templates():
    problem = countdown(template="{question}").train[0]
    assert problem.prompt == problem.entry["question"]
    assert problem.answer == problem.entry["answer"]


def test_rows_of_a_table_are_joined():
    task = make_reasoning_task(
        "mini_sudoku", train_size=2, held_out_size=1, seed=0, template="{metadata[puzzle]:/}"
    )
    for problem in task.train:
        rows = [[int(cell) for cell in row] for row in problem.prompt.split("/")]
        assert rows == problem.entry["metadata"]["puzzle"]


def test_no_known_answer_is_an_empty_text():
    task = make_reasoning_task("graph_color", train_size=1, held_out_size=1, seed=0)
    assert task.train[0].entry["answer"] is None
    assert task.train[0].answer == ""


@pytest.mark.parametrize(
    ("completion", "score", "is_right"),
    [("2*3 + 4", 1.0, 1.0), (" 4+2*3\n", 1.0, 1.0), ("2+3+4", 0.05, 0.0), ("2+*", 0.01, 0.0)],
)
def test_partial_scores_and_threshold(completion, score, is_right):
    entry = {"answer": "2*3 + 4", "metadata": {"numbers": [2, 3, 4], "target": 10}}
    problem = countdown(train_size=1, held_out_size=1).train[0]._replace(entry=entry)
    assert ReasoningVerifier("countdown", COUNTDOWN, None)(problem, completion) == score
    assert ReasoningVerifier("countdown", COUNTDOWN, 1.0)(problem, completion) == is_right
    assert ReasoningVerifier("countdown", COUNTDOWN, 0.05)(problem, completion) == (score >= 0.05)


def test_graded_scores_grow_with_the_share_that_is_right():
    task = make_reasoning_task("spell_backward", train_size=1, held_out_size=1, seed=0)
    problem = task.train[0]
    right = problem.answer
    scores = [
        task.verifier(problem, right[:known] + "#" * (len(right) - known))
        for known in range(len(right) + 1)
    ]
    assert scores == pytest.approx([known / len(right) for known in range(len(right) + 1)])


@pytest.mark.parametrize("name", ["countdown", "word_ladder"])
def test_verifier_is_small_to_send_and_scores_the_same(name):
    # word_ladder's scorer holds thousands of words.
    task = make_reasoning_task(name, train_size=2, held_out_size=1, seed=0, threshold=0.5)
    content = pickle.dumps((task.verifier, task.train))
    assert len(content) < 5000
    verifier, problems = pickle.loads(content)
    for problem in problems:
        assert verifier(problem, problem.answer) == 1.0
        assert verifier(problem, "0") == 0.0


def test_scorers_that_read_options_get_them():
    # Full marks end at half of max_date_difference_days.
    options = {"task_types": ["date"], "max_date_difference_days": 10}
    task = make_reasoning_task(
        "time_intervals", train_size=1, held_out_size=1, seed=0, options=options
    )
    problem = task.train[0]
    days = int(problem.answer.split()[0])
    verifier = pickle.loads(pickle.dumps(task.verifier))
    assert verifier(problem, f"{days + 5} days") == pytest.approx(0.5)


def test_names():
    names = reasoning_names()
    assert len(names) > 100
    assert "countdown" in names
    assert list(names) == sorted(names)


@pytest.mark.parametrize("name", ["power_function", "chain_sum", "complex_arithmetic"])
def test_right_answers_score_one(name):
    task = make_reasoning_task(name, train_size=5, held_out_size=1, seed=0)
    assert [task.verifier(problem, problem.answer) for problem in task.train] == [1.0] * 5


SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


@pytest.mark.parametrize(("verifier", "takes_words"), [("numeric", 1.0), ("exact", 0.0)])
def test_answers_may_be_compared_by_a_verifier_of_that_name(verifier, takes_words):
    task = make_reasoning_task(
        "chain_sum", train_size=5, held_out_size=1, seed=0, options=SUMS, verifier=verifier
    )
    for problem in task.train:
        numbers = problem.entry["metadata"]["expression"].replace(" ", "")
        assert task.verifier(problem, f" {eval(numbers)}") == 1.0
        assert task.verifier(problem, f"That makes {eval(numbers)}.") == takes_words
        assert task.verifier(problem, f"{eval(numbers) + 1}") == 0.0


@pytest.mark.parametrize(
    ("dataset", "verifier", "message"),
    [
        ("spell_backward", "numeric", "the numeric verifier expected a number and nothing else"),
        ("graph_color", "exact", "the exact verifier expected a text that is not blank, got ''"),
    ],
)
def test_an_answer_that_cannot_be_compared_with_is_refused(dataset, verifier, message):
    with pytest.raises(ValueError, match=rf"{dataset}: answer to '.*: {message}"):
        make_reasoning_task(dataset, train_size=1, held_out_size=1, seed=0, verifier=verifier)


@pytest.mark.parametrize(
    ("dataset", "text", "options"),
    [
        ("chain_sum", "", {}),
        ("chain_sum", '{"max_terms": 3, "allow_negation": true}', None),
        ("countdown", '{"operators": ["+", "-"]}', {"operators": ("+", "-")}),  # Says tuple.
        ("basic_arithmetic", '{"operators": ["+"]}', {"operators": ("+",)}),  # Says list, has one.
        ("polynomial_equations", '{"operators": ["+"]}', {"operators": ("+",)}),  # Of texts.
        ("rearc", '{"rng_difficulty_ranges": [[0, 1]]}', {"rng_difficulty_ranges": [(0, 1)]}),
        ("rearc", '{"rng_difficulty_weights": [1.0]}', {"rng_difficulty_weights": [1.0]}),
    ],
)
def test_options_from_a_command_line(dataset, text, options):
    expected = {"max_terms": 3, "allow_negation": True} if options is None else options
    assert repr(parse_options(text, dataset)) == repr(expected)


def test_options_by_name_are_as_those_from_a_command_line(task):
    options = COUNTDOWN | {"operators": ["+", "-", "*", "/"]}
    assert parse_options(options, "countdown")["operators"] == ("+", "-", "*", "/")
    assert options["operators"] == ["+", "-", "*", "/"]
    assert countdown(options=json.dumps(options)).train == task.train


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_terms=3", "got Expecting value in column 1 of 'max_terms=3'"),
        ("{'max_terms': 3}", "got Expecting property name enclosed in double quotes in column 2"),
        ("[3]", r"got \[3\]"),
        ("null", "got None"),
        ('{"max_terms": NaN}', "got NaN, which is no JSON"),
        ('{"max_terms": 3, "max_terms": 4}', "got the field 'max_terms' twice"),
        ('{"terms": 3}', r"unknown options of chain_sum: \['terms'\]; known are \["),
        ('{"seed": 3}', r"unknown options of chain_sum: \['seed'\]"),
    ],
)
def test_options_that_are_none(text, message):
    expected = "" if "unknown" in message else "options: expected a JSON object such as .*, "
    with pytest.raises(ValueError, match=expected + message) as error:
        parse_options(text, "chain_sum")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "count_down"}, "unknown data set 'count_down'; did you mean .*countdown.*"),
        (
            {"dataset": "qqqq"},
            r"unknown data set 'qqqq'; maxpo.lm.tasks.reasoning.reasoning_names\(\)",
        ),
        ({"options": {"numbers": 3}}, r"unknown options of countdown: \['numbers'\]; .*'max_num"),
        ({"options": {"seed": 3}}, r"unknown options of countdown: \['seed'\]"),
        ({"options": {"min_numbers": 9}}, "bad options of countdown: max_numbers must be >="),
        ({"options": {"min_numbers": "a"}}, "bad options of countdown"),
        ({"template": "{number}"}, r"template '\{number\}' cannot .*'question'.*metadata\[numbers"),
        ({"template": "{metadata[digits]}"}, r"template .*KeyError.*metadata\[numbers\]"),
        ({"template": "{question"}, "template '{question' cannot be filled in"),
        ({"template": "{}"}, "template '{}' cannot be filled in"),
        ({"answer_template": "{nothing}"}, "answer_template '{nothing}' cannot be filled in"),
        ({"train_size": 0}, "train_size: expected at least 1, got 0"),
        ({"held_out_size": 0}, "held_out_size: expected at least 1, got 0"),
        ({"threshold": 0.0}, r"threshold: expected a number in \(0, 1\] or None, got 0"),
        ({"threshold": 1.5}, r"threshold: expected a number in \(0, 1\] or None, got 1.5"),
        ({"template": "the same"}, "too few different prompts: found 1, expected 30 to train"),
    ],
)
def test_errors(changes, message, monkeypatch):
    monkeypatch.setattr("maxpo.lm.tasks.reasoning.MAX_DRAWS_IN_VAIN", 20)
    settings = {"dataset": "countdown", "train_size": 30, "held_out_size": 10, "seed": 0}
    with pytest.raises(ValueError, match=message):
        make_reasoning_task(**(settings | changes))


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=r"pip install 'maxpo\[lm\]'"):
        reasoning_names()


# Those whose problems depended on PYTHONHASHSEED, on what had drawn from the generator that all of
# Python shares (list_functions), and on the day (time_intervals).
HARD_TO_REPEAT = (
    *("ransom_note", "polynomial_multiplication", "isomorphic_strings", "word_ladder"),
    *("knight_swap", "list_functions", "time_intervals"),
)


def test_problems_are_the_same_in_every_process(monkeypatch):
    def entries_of(entries):
        return {
            # knight_swap takes seconds for each.
            name: [next(found) for _ in range(1 if name == "knight_swap" else 8)]
            for name in HARD_TO_REPEAT
            for found in [entries.of(name, {}, 3)]
        }

    with reasoning._Entries() as one:  # That of this module, which has made many others.
        before = entries_of(one)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    with START() as new:
        after = entries_of(new)
    assert before == after
    days = {
        entry["metadata"]["start_time"][:10]
        for entry in after["time_intervals"]
        if entry["metadata"]["task_type"] == "time_seconds"
    }
    assert days == {"2000-01-01"}


def test_this_process_keeps_its_random_state():
    random.seed(1)
    expected = random.Random(1).random()
    make_reasoning_task("list_functions", train_size=1, held_out_size=1, seed=0)
    assert random.random() == expected


def test_what_ends_the_other_process_is_told():
    with START() as entries:
        with pytest.raises(RuntimeError, match=r"countdown cannot be made: (.|\n)*TypeError"):
            next(entries.of("countdown", {"no": 1}, 0))
        assert next(entries.of("countdown", {}, 0))["answer"]
        entries._process.kill()
        with pytest.raises(RuntimeError, match="countdown: its process ended: status -9"):
            next(entries.of("countdown", {}, 0))
