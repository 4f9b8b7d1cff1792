"""The notebooks run from the first cell to the last, as stored, without the network."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def printed(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.get("name") == "stdout"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_as_stored(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STEPS", "2")  # of training
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    stored = printed(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()  # raises on an error
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= 2
    if path.stem != "3_compare_blocks":  # it prints how many samples are right, after the stored number of steps
        assert printed(notebook) == stored


def test_stored_notebooks_have_pictures_are_small_and_name_no_path_of_a_machine():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert path.stat().st_size < 600_000, path.name
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert [output for output in outputs if "image/png" in output.get("data", {})], path.name
        assert [output for output in outputs if output.output_type == "error"] == []
        printed = "".join(output.text for output in outputs if output.output_type == "stream")
        assert re.findall(r"/(?:tmp|home|root)/", printed) == [], path.name


def test_links_of_the_notebooks_lead_somewhere():
    texts = {path.name: path.read_text(encoding="utf-8") for path in NOTEBOOKS}
    links = {(name, link) for name, text in texts.items() for link in re.findall(r"\]\((\.\.[^)#\s]+)\)", text)}
    assert len(links) >= 6
    assert [link for link in links if not (FOLDER / link[1]).exists()] == []
