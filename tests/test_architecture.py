"""The layers hold: who may import whom, where heavy libraries live, what no module may contain.

The rules are tables; docs/architecture.md says why.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("gemma3vl_app").origin).parent

# A module imports only from lower rows and from its own folder; the package's top is one folder.
# The backend protocol stands below the backends that keep it and the surfaces that use it.
ROWS = [
    {
        *("errors", "pictures", "picture_decoding", "picture_process", "picture_workers"),
        *("pdf_pages", "remote_pictures", "lazy_pictures", "messages", "generation", "stream"),
        *("transcript", "turn_tree", "traces", "schemas", "atomic_file", "wording", "plain"),
        "addresses",
    },
    {"catalog", "hardware", "conversation_file"},
    {"planning"},
    {"loading", "prompting", "backends.protocol"},
    {"engine"},
    {"backends", "testing"},
    {"manager", "store"},
    {"chat", "tasks", "explain", "folders", "replay", "export"},
    {"scenes"},
    {
        *("webui", "api", "notebook", "finetune", "conversion", "evaluation", "faithfulness"),
        "benchmark",
    },
    {"shield", "connections"},
    {"server", "launching"},
    {"space"},
    {"cli"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}

# These see no engine: they run on any backend, a remote one too.
SURFACES = {"webui", "api", "notebook"}
SURFACES_IMPORT = ROWS[0] | ROWS[1] | ROWS[2] | ROWS[6] | ROWS[7] | {"backends.protocol"}

HOMES = {
    "torch": {
        *("loading", "prompting", "engine", "backends.local", "backends.borrowed", "testing"),
        *("hardware", "finetune", "conversion", "evaluation", "faithfulness", "benchmark"),
    },
    "gradio": {"webui", "server", "launching"},
    "fastapi": {"api", "server", "space"},
    "matplotlib": {"explain", "notebook", "benchmark"},
}
INSIDE_FUNCTIONS_ONLY = {("torch", "hardware")}

BANNED_NAMES = {"utils", "util", "common", "core", "helpers", "helper", "misc"}
CONFIG_NUMBERS = {256, 896, 1024}  # tokens per image, picture size, window: the config says them
KNOWS_THE_NUMBERS = {"catalog"}


def name_of(path: Path) -> str:
    """Dotted name inside the package: gemma3vl_app/engine/kv.py is engine.kv."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(p): p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE or name_of(p)
}
names = pytest.mark.parametrize("name", MODULES)


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imported_by(tree: ast.AST) -> list[str]:
    """Everything imported anywhere in `tree`, functions included: a.b.c for `from a.b import c`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_imports(name: str) -> set[str]:
    """Modules of this package that module `name` imports; "" is the package itself."""
    found = set()
    for imported in imported_by(tree_of(name)):
        if top(imported) == "gemma3vl_app" and imported != "gemma3vl_app.__version__":
            inside = imported.partition(".")[2]
            found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found


def is_within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def top(name: str) -> str:
    return name.split(".")[0]


def row_of(name: str) -> int:
    return ROW[name] if name in ROW else ROW[top(name)]


def is_top_module(name: str) -> bool:
    return MODULES[name].parent == PACKAGE


def allowed(importer: str, imported: str) -> bool:
    if top(importer) == top(imported):
        return True
    below = row_of(imported) < row_of(importer)
    beside = row_of(imported) == row_of(importer)
    return below or (beside and is_top_module(importer) and is_top_module(imported))


@names
def test_every_module_has_a_row(name):
    assert top(name) in ROW, f"{name} is in no row of the table"


@names
def test_a_module_imports_only_from_lower_rows_and_its_own_folder(name):
    wrong = {i for i in own_imports(name) if i and not allowed(name, i)}
    assert not wrong, f"{name} (row {row_of(name)}) must not import {sorted(wrong)}"


@names
def test_nobody_imports_through_the_table_of_contents(name):
    assert "" not in own_imports(name), f"{name} must import names from their own modules"


@pytest.mark.parametrize("name", [n for n in MODULES if top(n) in SURFACES])
def test_a_surface_sees_the_backend_protocol_and_no_engine(name):
    seen = {i for i in own_imports(name) if top(i) != top(name)}
    wrong = {i for i in seen if not is_within(i, SURFACES_IMPORT)}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


@names
def test_heavy_libraries_stay_in_their_homes(name):
    libraries = {top(i) for i in imported_by(tree_of(name))}
    for library, homes in HOMES.items():
        assert library not in libraries or is_within(name, homes), f"{name} imports {library}"


@pytest.mark.parametrize(("library", "name"), sorted(INSIDE_FUNCTIONS_ONLY))
def test_a_guest_library_is_imported_inside_functions_only(library, name):
    if name not in MODULES:
        pytest.fail(f"{name} is gone: remove it from the table")
    outside = [n for n in tree_of(name).body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert library not in {top(i) for node in outside for i in imported_by(node)}


@names
def test_no_module_has_a_name_that_says_nothing(name):
    assert not BANNED_NAMES & set(name.split("."))


@names
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(tree_of(name)), f"{name} has no docstring"


def test_the_folders_say_what_they_are():
    silent = [
        d for d in PACKAGE.rglob("*/") if any(d.glob("*.py")) and not (d / "__init__.py").exists()
    ]
    assert not silent


@pytest.mark.parametrize("name", [n for n in MODULES if not is_within(n, KNOWS_THE_NUMBERS)])
def test_numbers_of_the_config_are_not_written_into_the_code(name):
    tree = tree_of(name)
    exempt = {id(node) for node in token_limits(tree)}
    wrong = [
        f"line {node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, int)
        and node.value in CONFIG_NUMBERS
        and id(node) not in exempt
    ]
    assert not wrong, f"{name} holds {wrong}: read them from the config; write bytes as 1 << 20"


def token_limits(tree: ast.AST) -> list[ast.expr]:
    """Defaults of anything named max_new_tokens: the user's limit, no property of a model."""
    fields = [n for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and n.value]
    found = [n.value for n in fields if getattr(n.target, "id", "") == "max_new_tokens"]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            positional = arguments.posonlyargs + arguments.args
            pairs = [*zip(positional[::-1], arguments.defaults[::-1], strict=False)]
            pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            found += [default for arg, default in pairs if arg.arg == "max_new_tokens" and default]
    return found
