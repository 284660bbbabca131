"""`import gemma3vl_app` is quick and loads nothing heavy; its table of contents is right."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gemma3vl_app

LIMIT_SEC = 0.3
HEAVY = ("torch", "transformers", "gradio", "fastapi", "numpy", "PIL", "pydantic")
TIMED_IMPORT = """
import sys, time
started = time.perf_counter()
import gemma3vl_app
print(time.perf_counter() - started)
print(*sorted(sys.modules))
"""


def fresh_import() -> tuple[float, set[str]]:
    """Import the package in a new interpreter; return the seconds and the modules then loaded."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED_IMPORT], capture_output=True, text=True, check=True
    )
    seconds, modules = done.stdout.splitlines()
    return float(seconds), set(modules.split())


def test_the_import_is_quick_and_loads_nothing_heavy():
    runs = [fresh_import() for _ in range(3)]
    assert not set(HEAVY) & runs[0][1]
    assert min(seconds for seconds, _ in runs) < LIMIT_SEC


@pytest.mark.parametrize("name", [n for n in dir(gemma3vl_app) if n != "__version__"])
def test_every_name_of_the_table_of_contents_exists(name):
    assert getattr(gemma3vl_app, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gemma3vl_app.no_such_name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(gemma3vl_app.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {name: f"gemma3vl_app.{home}" for name, home in gemma3vl_app._CONTENTS.items()}
    table |= dict.fromkeys(gemma3vl_app._MODULES, "gemma3vl_app")
    assert seen == table
    for name, home in table.items():
        assert hasattr(importlib.import_module(home), name)


def test_a_model_without_adapters_and_4_bits_waits_for_no_library_of_theirs():
    code = (
        "import sys, gemma3vl_app.backends.local; print({'peft', 'bitsandbytes'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
