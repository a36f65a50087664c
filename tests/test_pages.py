"""The pages in docs/: links lead somewhere, commands name what there is, and snippets run."""

import doctest
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from maxpo import lm
from maxpo.evaluate.__main__ import main as evaluate
from maxpo.lm.training import door
from maxpo.runs import load_config
from maxpo.runs._config import flatten

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
VARIANTS = {"experiments.evaluate": ("jsonl", "reasoning"), "experiments.lm": ()}


def slug(heading):
    """A heading as GitHub's anchors have it."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(page):
    return {slug(found) for found in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def commands():
    """Those of the pages about language models, as lists of words."""
    text = "".join((DOCS / page).read_text() for page in ("language_models.md", "recipes.md"))
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "-m" in words and words[words.index("-m") + 1].startswith("experiments."):
                yield words[words.index("-m") + 1 :]


def fields(module, words):
    """The fields of the configs that a command may have."""
    specs = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    specs += [f"configs/lm.py:{variant}" for variant in VARIANTS[module] if not specs]
    found = set()
    for spec in specs:
        found |= set(flatten(load_config(spec)))
    return found


def test_commands_name_programs_and_fields():
    found = list(commands())
    assert {words[0] for words in found} > set(VARIANTS)
    for module, *words in found:
        assert importlib.util.find_spec(module), module
        flags = [re.match(r"--config\.([\w.]+)=", word) for word in words]
        named = {flag[1] for flag in flags if flag}
        assert not named or named <= fields(module, words), named


def test_the_examples_of_the_estimators_print_what_they_say():
    blocks = re.findall(r"```pycon\n(.*?)```", (DOCS / "estimators.md").read_text(), re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("".join(blocks), {}, "estimators.md", None, 0)
    assert len(examples.examples) > 20
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples)
    assert not failed


def test_the_reward_of_several_parts():
    (code,) = re.findall(
        r"```python\n(.*?WeightedParts\(.*?)```", (DOCS / "verification.md").read_text(), re.DOTALL
    )
    names = {}
    exec(compile(code, "verification.md", "exec"), names)
    reward, problem = names["reward"], lm.Problem("6 * 7?", "42")
    assert reward(problem, "42") == pytest.approx(1.2)
    assert reward(problem, "forty-two") == pytest.approx(0.2)
    assert reward.decides == "correct"


def blocks(page):
    """The languages and texts of the blocks of code of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def run_blocks(page, capsys, skipped=()):
    """Runs Python and evaluations in one namespace; a text below one is what it prints."""
    names, found = {}, blocks(page)
    capsys.readouterr()
    for (language, code), (then, printed) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python" and code not in skipped:
            exec(compile(code, page, "exec"), names)
        elif code.startswith("python -m maxpo.evaluate "):
            evaluate(shlex.split(code)[3:])
        else:
            continue
        output = capsys.readouterr().out
        if then == "text":
            assert output.rstrip() == printed.rstrip()


def test_the_ways_in(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = [code for language, code in blocks("start.md") if language == "python"]
    training = shown[-1]
    assert training in README.read_text()  # Whose tests run it.
    run_blocks("start.md", capsys, skipped=[training])


def test_the_recipes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    train, results = lm.train, []

    class CheckedError(Exception):
        pass

    def stop(*_, **__):
        raise CheckedError

    def first_trains(policy, *args, **kwargs):
        if not results:
            tiny = {"steps": 1, "group_size": 5, "prompts": 1, "samples": 1}
            results.append(train(policy, *args, **{**kwargs, **tiny}))
            capsys.readouterr()
            # What follows the checks of the arguments, and comes before any work.
            monkeypatch.setattr(door, "encode", stop)
        else:
            with pytest.raises(CheckedError):
                train(policy, *args, **kwargs)
        return results[0]

    monkeypatch.setattr(lm, "train", first_trains)
    run_blocks("recipes.md", capsys)
    assert results[0].history
