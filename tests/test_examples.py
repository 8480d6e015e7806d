"""The example notebooks run from their first cell to their last, in a kernel of their own."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow  # a kernel of its own
def test_the_classic_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "vqgan_clip.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "step 4: loss" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    with Image.open(tmp_path / "vqgan_clip.gif") as film:
        assert film.size == (256, 256)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_without_output_in_short_cells(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 12
    for cell in cells:
        assert not cell.get("outputs")
        assert len(cell["source"]) <= 15
