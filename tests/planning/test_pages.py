"""docs/models.md and docs/memory.md say what the planner does, and their commands work."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.planning.pages import DOCS, TABLES, table_in

PLACES = [(page, name) for page, tables in TABLES.items() for name in tables]
COMMANDS = [
    shlex.split(line, comments=True)
    for page in TABLES
    for block in re.findall(r"^```bash\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize(("page", "name"), PLACES)
def test_the_tables_are_what_the_planner_says_now(page, name):
    message = "run `python -m tests.planning.pages` to write it anew"
    assert table_in(page, name) == TABLES[page][name](), message


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_the_commands_of_the_pages_work(command, tmp_path):
    assert command[0] == "gemma3vl"
    done = subprocess.run(
        [sys.executable, "-m", "gemma3vl_app.cli", *command[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 200


def test_there_is_a_place_for_measured_figures_and_there_are_commands():
    assert "<!-- measured: begin -->" in (DOCS / "memory.md").read_text(encoding="utf-8")
    assert "<!-- measured: end -->" in (DOCS / "memory.md").read_text(encoding="utf-8")
    assert len(COMMANDS) >= 6


def test_what_several_servers_hold_is_what_the_table_says():
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    cells = {}
    for row in re.findall(r"^\| (\d x 80 GB[^|]*)\|(.*)\|$", page, re.M):
        cells[row[0][:1]] = [int(re.sub(r"\(.*\)|,", "", each)) for each in row[1].split("|")]
    for size, column in (("27B", 3), ("12B", 0)):
        one, eight = cells["1"][column], cells["8"][column]
        assert f"8 x {one} = {8 * one}" in page and f"{eight:,}" in page, size
        assert 8 * one < eight
