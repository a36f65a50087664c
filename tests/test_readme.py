"""What README shows runs, and prints what it says."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_prints_what_its_comment_says(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    value, start = re.search(r"# (0\.\d\d), from (0\.\d\d)\n$", code).groups()
    assert capsys.readouterr().out == f"max@4 = {value}\n"
    rewards = sorted([0.2, 0.9, 0.5, 0.1, 0.4, 0.7, 0.3, 0.8])
    uniform = sum(r * (((i + 1) / 8) ** 4 - (i / 8) ** 4) for i, r in enumerate(rewards))
    assert f"{uniform:.2f}" == start


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README.read_text()):
        assert target.startswith("https://") or (README.parent / target).exists(), target
