"""The notebooks, executed in a kernel of their own."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
# What a notebook imports beside this package.
NEEDS = {"move-lancedb": "lancedb"}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="the packages nbclient and ipykernel are not installed")
    nbformat = pytest.importorskip("nbformat")
    if notebook.stem in NEEDS:
        pytest.importorskip(NEEDS[notebook.stem], reason=f"the package {NEEDS[notebook.stem]} is not installed")
    document = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in document.cells), "commit notebooks without their outputs"
    nbclient.NotebookClient(document, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
