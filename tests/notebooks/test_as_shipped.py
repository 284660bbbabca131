"""Notebooks as they are shipped: short cells, no outputs, nothing of the machine they came from."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MOST_LINES = 15
each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook, kind):
    data = json.loads(notebook.read_text(encoding="utf-8"))
    assert data["nbformat"] == 4
    return [cell for cell in data["cells"] if cell["cell_type"] == kind]


@each
def test_cells_are_short_and_shipped_without_outputs(notebook):
    code = cells(notebook, "code")
    assert len(code) >= 3
    for cell in code:
        assert len("".join(cell["source"]).splitlines()) <= MOST_LINES, cell["id"]
        assert not cell["outputs"] and cell["execution_count"] is None


def first_cell(notebook):
    return "".join(cells(notebook, "code")[0]["source"])


@each
def test_every_notebook_begins_with_the_same_cell(notebook):
    assert first_cell(notebook) == first_cell(NOTEBOOKS[0])


@pytest.mark.notebook
@pytest.mark.parametrize("is_clone", [True, False])
def test_the_first_cell_installs_what_is_needed_from_the_clone_or_the_index(
    shell, monkeypatch, tmp_path, is_clone
):
    root = NOTEBOOKS[0].parents[1]
    monkeypatch.chdir(root / "notebooks" if is_clone else tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = []
    shell.register_magic_function(lines.append, magic_name="pip")
    shell.run_cell(first_cell(NOTEBOOKS[0])).raise_error()
    package = root if is_clone else "gemma3vl-app"
    assert lines == [f'install --quiet "{package}[widgets]"']


@pytest.mark.notebook
def test_the_first_cell_installs_nothing_where_the_package_is_there(shell):
    lines = []
    shell.register_magic_function(lines.append, magic_name="pip")
    shell.run_cell(first_cell(NOTEBOOKS[0])).raise_error()
    assert not lines


@each
def test_no_path_of_one_machine_is_in_it(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|work|mnt|content)/|[A-Z]:\\\\", text)


@each
def test_it_begins_with_its_number_and_explains_before_it_shows(notebook):
    prose = cells(notebook, "markdown")
    number = int(notebook.stem.split("_")[0])
    assert "".join(prose[0]["source"]).startswith(f"# {number} · ")
    assert len(prose) >= 4
