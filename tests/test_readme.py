"""What README shows runs, and prints what it says."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def snippets():
    """The two blocks of Python."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_prints_what_its_comment_says(capsys):
    code, _ = snippets()
    exec(compile(code, str(README), "exec"), {})
    value, start = re.search(r"# (0\.\d\d), from (0\.\d\d)\n$", code).groups()
    assert capsys.readouterr().out == f"max@4 = {value}\n"
    rewards = sorted([0.2, 0.9, 0.5, 0.1, 0.4, 0.7, 0.3, 0.8])
    uniform = sum(r * (((i + 1) / 8) ** 4 - (i / 8) ** 4) for i, r in enumerate(rewards))
    assert f"{uniform:.2f}" == start


def test_the_language_model_snippet_trains(capsys, monkeypatch, tmp_path):
    _, code = snippets()
    assert code.count("steps=200") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=200", "steps=2"), str(README), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-2:]] == ["before", "after"]
    assert (tmp_path / "runs" / "mine" / "best_of_k.png").exists()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README.read_text()):
        assert target.startswith("https://") or (README.parent / target).exists(), target
