"""Each notebook runs from top to bottom on the demo, and what it shows is true and small."""

from pathlib import Path

import pytest

from tests.notebooks.test_as_shipped import NOTEBOOKS

pytestmark = [pytest.mark.notebook, pytest.mark.slow]
CELL_SEC = 300  # the first use of the demo on a machine converts it
MOST_CHARS = 400_000  # of all outputs of a notebook, pictures included
MEANT = {
    "01_quickstart": ("red circle", "red."),
    "02_tasks": ("red circle", "green", "colour"),
    "03_several_pictures": ("blue", "picture tokens"),
    "04_explain": ("occlusion of", "triangle", "17 global", "crops on against"),
    "05_memory": ("fits", "(false,"),
    "06_finetune": ("pirate: ahoy",),
    "07_inside": ("differs", "all global"),
}


def outputs(notebook):
    return [each for cell in notebook.cells for each in cell.get("outputs", ())]


def text_of(output):
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_says(path: Path, tmp_path, monkeypatch):
    import nbclient  # of the extra `notebook`
    import nbformat

    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(path, 4)
    folder = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(
        notebook, timeout=CELL_SEC, kernel_name="python3", resources=folder
    )
    client.execute()
    shown = outputs(notebook)
    assert all(each.output_type != "error" for each in shown)
    assert len(str(shown)) < MOST_CHARS
    text = "\n".join(map(text_of, shown)).lower()
    for words in MEANT.get(path.stem, ()):
        assert words in text, text[-3000:]
