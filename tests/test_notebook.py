"""The notebook runs from top to bottom, and what is stored in it is its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "maxpo_tour.ipynb"
PICTURES = ("picture-1", "picture-2", "picture-3", "bandit")
PRINTED = ("group", "sums", "bandit-table", "sweep", "anneal")


def code_cells(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def check_outputs(notebook):
    for name, cell in code_cells(notebook).items():
        for output in cell.outputs:
            assert output.output_type != "error", name
            assert output.get("name") != "stderr", f"{name}: {output.text}"
    for name in PICTURES:
        (output,) = code_cells(notebook)[name].outputs
        assert "image/png" in output.data, name
    for name in PRINTED:
        assert any(output.get("name") == "stdout" for output in code_cells(notebook)[name].outputs)


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_stored_outputs_are_there_small_and_of_one_run(notebook):
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert NOTEBOOK.stat().st_size < 600_000
    counts = [cell.execution_count for cell in code_cells(notebook).values()]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.kernelspec.name == "python3"


def test_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in cell.source.split("](")[1:] if cell.cell_type == "markdown" else ():
            target = target.partition(")")[0]
            assert target.startswith("https://") or (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    # Nobody's profile, and no accelerator to be asked for.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for cell in code_cells(notebook).values():
        cell.outputs, cell.execution_count = [], None
    copy = tmp_path / NOTEBOOK.name
    nbformat.write(notebook, copy)
    copied = nbformat.read(copy, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(copied, timeout=180, kernel_name="python3", resources=resources).execute()
    check_outputs(copied)
