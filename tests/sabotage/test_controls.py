"""The table of controls is true of the code and of the docs; `make sabotage` tries the controls."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

from tests.sabotage.control import Control
from tests.sabotage.controls import CONTROLS
from tests.sabotage.page import PAGE, renewed
from tests.sabotage.run import ROOT, copied, take_out, without

PACKAGE = Path(importlib.util.find_spec("gemma3vl_app").origin).parent
controls = pytest.mark.parametrize("control", CONTROLS, ids=lambda c: f"{c.threat}: {c.says}")


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@controls
def test_each_control_is_in_its_file_once_and_its_test_exists(control: Control) -> None:
    changed = without(control, (PACKAGE / control.file).read_text(encoding="utf-8"))
    if control.file.endswith(".py"):
        ast.parse(changed)
    file, _, name = control.test.partition("::")
    assert name.partition("[")[0] in names_in(file)


def test_the_page_shows_the_table_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "renew it with make sabotage"


def test_a_control_that_is_taken_out_is_noticed_and_a_harmless_change_is_not() -> None:
    real = next(c for c in CONTROLS if c.says == "files have a most of bytes")
    harmless = Control(real.threat, real.says, real.file, "# --- colour ---", "# ---", real.test)
    broken = Control(
        real.threat, real.says, real.file, "import io\n", "import nothing\n", real.test
    )
    with copied() as copy:
        assert take_out(real, copy).verdict == "noticed"
        assert take_out(harmless, copy).verdict == "NOT NOTICED"
        assert take_out(broken, copy).verdict == "BROKEN"
