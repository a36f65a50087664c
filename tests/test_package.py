"""What holds for all modules of the package."""

import ast
import re
from pathlib import Path

import maxpo
import maxpo.runs

ROOT = Path(maxpo.__file__).parent


def test_every_public_module_says_what_it_exports():
    for path in sorted(ROOT.rglob("*.py")):
        if path.name.startswith("_") and path.name != "__init__.py":
            continue
        names = {
            target.id
            for node in ast.parse(path.read_text()).body
            for target in getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(target, ast.Name)
        }
        assert "__all__" in names, path


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", maxpo.__version__)
    others = [*ROOT.parent.glob("*.py"), ROOT.parent / "pyproject.toml"]
    assert not [path for path in others if maxpo.__version__ in path.read_text()]
    assert f"version: {maxpo.__version__}\n" in (ROOT.parent / "CITATION.cff").read_text()


def test_what_is_promised_is_there():
    for name in maxpo.__all__:
        assert getattr(maxpo, name) is not None
    for name in maxpo.lm.__all__:
        assert getattr(maxpo.lm, name) is not None
    for name in maxpo.runs.__all__:
        assert getattr(maxpo.runs, name) is not None


def test_every_python_that_is_named_is_tested():
    setup = (ROOT.parent / "setup.py").read_text()
    workflow = (ROOT.parent / ".github" / "workflows" / "ci.yml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', setup)
    (matrix,) = re.findall(r"python: \[(.+)\]", workflow)
    assert re.findall(r'"(3\.\d+)"', matrix) == named
    assert f'python_requires=">={named[0]}"' in setup
