"""The notebooks run from top to bottom, and what is stored in them is their own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_checkpoint import make_tiny_checkpoint

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TOUR, LANGUAGE_MODEL = "maxpo_tour", "maxpo_language_model"
PICTURES = {
    TOUR: ("picture-1", "picture-2", "picture-3", "bandit"),
    LANGUAGE_MODEL: ("curve", "learning"),
}
PRINTED = {
    TOUR: ("group", "sums", "bandit-table", "sweep", "anneal"),
    LANGUAGE_MODEL: ("model", "problems", "before", "written-before", "written-after", "save"),
}
# Training says how far it is.
PROGRESS = ("train",)


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def check_outputs(name, notebook):
    cells = code_cells(notebook)
    for label, cell in cells.items():
        for output in cell.outputs:
            assert output.output_type != "error", label
            assert label in PROGRESS or output.get("name") != "stderr", f"{label}: {output.text}"
    for label in PICTURES[name]:
        (output,) = cells[label].outputs
        assert "image/png" in output.data, label
    for label in PRINTED[name]:
        assert any(output.get("name") == "stdout" for output in cells[label].outputs), label


def run(name, folder, monkeypatch, **changes):
    """Runs a copy of a notebook, some of its cells with other words, and checks its outputs."""
    # Nobody's profile, and no accelerator to be asked for.
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    copy = read(name)
    cells = code_cells(copy)
    for cell in cells.values():
        cell.outputs, cell.execution_count = [], None
    for label, (old, new) in changes.items():
        assert cells[label].source.count(old) == 1
        cells[label].source = cells[label].source.replace(old, new)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(copy, timeout=180, kernel_name="python3", resources=resources).execute()
    check_outputs(name, copy)


@pytest.mark.parametrize("name", [TOUR, LANGUAGE_MODEL])
def test_stored_outputs_are_there_small_and_of_one_run(name):
    notebook = read(name)
    nbformat.validate(notebook)
    check_outputs(name, notebook)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 600_000
    counts = [cell.execution_count for cell in code_cells(notebook).values()]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", [TOUR, LANGUAGE_MODEL])
def test_links_lead_somewhere(name):
    for cell in read(name).cells:
        for target in cell.source.split("](")[1:] if cell.cell_type == "markdown" else ():
            target = target.partition(")")[0]
            assert target.startswith("https://") or (NOTEBOOKS / target).exists(), target


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    run(TOUR, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_language_model_is_trained_from_top_to_bottom(tmp_path, monkeypatch):
    make_tiny_checkpoint(tmp_path / "tiny")
    run(
        LANGUAGE_MODEL,
        tmp_path,
        monkeypatch,
        model=('folder = "smollm2"', 'folder = "tiny"'),
        train=("steps=16", "steps=2"),
    )
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "trained" / "model.safetensors").exists()
