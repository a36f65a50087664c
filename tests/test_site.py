"""The site of mkdocs.yml: which pages and modules are in it, and what it reads of configs."""

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest

from maxpo.runs import load_config

ROOT = Path(__file__).parent.parent
NAV = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
CONFIGS = sorted((ROOT / "configs").glob("[a-z]*.py"))


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """The folder from which mkdocs loads them; those that are tested import no mkdocs."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")


def hook(name):
    return importlib.import_module(name)


def test_every_page_has_a_place():
    named = re.findall(r"- (?:[\w ]+: )?(\w+)\.md$", NAV, re.M)
    assert sorted(named) == sorted(page.stem for page in (ROOT / "docs").glob("*.md"))


def test_modules_of_the_reference(tmp_path):
    def write(name, exports):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"__all__: list[str] = {exports}\n")

    write("__init__.py", ["__version__"])
    write("core.py", ["f"])
    write("_hidden.py", ["g"])
    write("lm/__init__.py", ["train"])
    write("lm/model/__init__.py", [])
    write("lm/model/config.py", ["SIZES"])
    write("lm/__main__.py", ["main"])
    write("_private/module.py", ["h"])
    write("studies/bandit.py", ["Trainer"])
    found = {"": ["core"], "lm": ["lm"], "lm.model": ["lm.model.config"]}
    assert hook("public_modules").public_modules(tmp_path) == found


def write(folder, text):
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(text))
    return path


SOURCE = '''
    """A study."""

    SHARED = ConfigDict(
        {
            "chat": None,  # Whether they are chats.
        }
    )

    def get_config(variant="default"):
        config = ConfigDict()
        config.seed = 0
        config.steps = 20  # Updates.
        # Decided by these two,
        # together.
        config.methods = (
            "rloo",  # For the mean.
            "maxpo:k=4",
        )
        # Of the policy.
        config.model = ConfigDict({"size": "nano"})
        config.model.rate = 1e-4
        config.task = ConfigDict()
        config.task.update(SHARED)
        if variant == "other":
            config.steps = 10
            config.extra = 1.5  # Of this variant alone.
        return config
'''


def test_a_field_has_its_default_and_its_comment(tmp_path):
    path, config_fields = write(tmp_path, SOURCE), hook("config_fields")
    assert config_fields.docstring(path) == "A study."
    assert config_fields.fields(path) == [
        ("seed", "0", ""),
        ("steps", "20", "Updates."),
        ("methods", "('rloo', 'maxpo:k=4')", "Decided by these two, together."),
        ("model", "", "Of the policy."),
        ("model.size", '"nano"', ""),
        ("model.rate", "1e-4", ""),
        ("task", "", ""),
        ("task.chat", "None", "Whether they are chats."),
    ]
    assert config_fields.fields_of_variants(path) == [("extra", "1.5", "Of this variant alone.")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_defaults_are_those_of_the_config(path):
    config, found = load_config(str(path)), hook("config_fields").fields(path)
    assert {name.partition(".")[0] for name, _, _ in found} == set(config)
    for name, default, _ in found:
        value = config
        for part in name.split("."):
            value = value[part]
        try:
            expected = ast.literal_eval(default)
        except (SyntaxError, ValueError):  # A section, or an expression.
            continue
        assert hasattr(value, "items") or value == expected, name


def test_a_row_has_the_names_of_other_trainers():
    config_page = hook("config_page")
    names = config_page.names_elsewhere(ROOT / "docs" / "names.md")
    page = config_page.config_page(ROOT / "configs" / "lm.py", names)
    assert (
        "\n| `rl.group_size` | `16` | N, samples of each prompt. | TRL: `num_generations`<br>"
        "verl: `rollout.n`<br>Tunix: `num_generations` |\n"
    ) in page
    assert "\n| `model.overrides` | `{}` | Other fields of TransformerConfig. |" in page
    assert "\n## `mesh`\n\nA mesh of all devices; see maxpo.parallel.\n" in page


RESULTS = """# Results

All of it. [First](#one-study).

## One study

![A figure](figures/a.png) [below](#two-more), [here](#its-details), [theory](theory.md#proof)

### Its details

```bash
# A comment is no heading.
```

## Two, more

[Above](#its-details)
"""


def test_results_in_pieces():
    results = hook("results_pages")
    found, headings = results.pages(RESULTS), results.page_of_each_heading(RESULTS)
    one, two = "results/one-study.md", "results/two-more.md"
    assert list(found) == ["results.md", one, two]
    assert headings == {
        "one-study": one,
        "its-details": one,
        "a-comment-is-no-heading": one,  # It harms none.
        "two-more": two,
    }
    moved = {page: results.redirected(text, page, headings) for page, text in found.items()}
    assert moved["results.md"] == (
        "# Results\n\nAll of it. [First](results/one-study.md#one-study).\n\n"
        "* [One study](results/one-study.md#one-study)\n"
        "* [Two, more](results/two-more.md#two-more)\n"
    )
    assert moved[one].startswith(
        "# One study\n\n![A figure](../figures/a.png) [below](two-more.md#two-more), "
        "[here](one-study.md#its-details), [theory](../theory.md#proof)\n\n## Its details\n"
    )
    assert moved[two] == "# Two, more\n\n[Above](one-study.md#its-details)\n"
    elsewhere = results.redirected(
        "[x](results.md#its-details) [y](https://a.b/)", "a.md", headings
    )
    assert elsewhere == "[x](results/one-study.md#its-details) [y](https://a.b/)"
