"""What docs/evaluation.md shows is what its snippets and commands print."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from maxpo.evaluate.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OUTPUTS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^python -m maxpo\.evaluate (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the files of the page are."""
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[0], "evaluation.md", "exec"), {})
    return tmp_path


def test_the_command(folder, capsys):
    main(shlex.split(COMMANDS[0]))
    assert capsys.readouterr().out == OUTPUTS[0]


@pytest.mark.parametrize("number", [1, 2])
def test_a_snippet(folder, capsys, number):
    exec(compile(SNIPPETS[number], "evaluation.md", "exec"), {})
    assert capsys.readouterr().out == OUTPUTS[number]


def test_the_large_file_in_small(folder):
    (block,) = [
        code for code in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "time" in code
    ]
    script = block.replace("10**6", "1000").replace("python ", f"{shlex.quote(sys.executable)} ")
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "1000 samples of 10 problems" in found.stdout
    assert "left out" not in found.stdout


def test_nothing_of_the_page_is_left_out():
    assert (len(SNIPPETS), len(OUTPUTS), len(COMMANDS)) == (3, 3, 1)
