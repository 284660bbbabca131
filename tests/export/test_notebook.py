"""A notebook that asks the same again: valid, harmless, and it runs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemma3vl_app as gv
import gemma3vl_app.backends.local
from gemma3vl_app.export import export
from gemma3vl_app.export.notebook import notebook
from gemma3vl_app.generation import Sample
from gemma3vl_app.testing.scripted import ScriptedBackend
from gemma3vl_app.transcript import ROOT, ModelIdentity, Transcript, Turn
from tests.export.chats import (
    BLUE,
    EVERYDAY,
    RED,
    answer,
    assistant,
    generated,
    hostile,
    user,
)

CIRCLE = Path(__file__).parents[2] / "docs" / "circle.png"
RUN_SEC = 120  # on a busy machine; alone it takes about ten
RUN = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
for cell in cells:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]))
"""


def cells(transcript: Transcript, branches: bool = False) -> list[dict]:
    data = json.loads(notebook(transcript, "a-pictures", branches).text)
    check_format(data)
    return data["cells"]


def code(transcript: Transcript, branches: bool = False) -> list[str]:
    return [c["source"] for c in cells(transcript, branches) if c["cell_type"] == "code"]


def check_format(data: dict) -> None:
    """The rules of notebook format 4.5, by nbformat where it is installed."""
    try:
        import nbformat
    except ImportError:
        pass
    else:
        nbformat.validate(data)
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    assert set(data) == {"nbformat", "nbformat_minor", "metadata", "cells"}
    ids = [cell["id"] for cell in data["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in data["cells"]:
        more = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"id", "cell_type", "metadata", "source"} | more
        for output in cell.get("outputs", []):
            assert set(output) == {"output_type", "name", "text"}


def literals(source: str) -> list[object]:
    """Every literal in a cell that is not a part of another one."""
    found = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        try:
            found.append(ast.literal_eval(node))
        except (ValueError, TypeError):
            waiting += ast.iter_child_nodes(node)
    return found


def names(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a notebook's cells beside its pictures, on a backend of ours; return their chat."""

    def run(transcript: Transcript, backend: ScriptedBackend) -> gv.Chat:
        export(transcript, tmp_path / "a.ipynb")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: backend)
        scope: dict = {}
        for source in code(transcript):
            exec(source, scope)
        return scope["chat"]

    return run


def test_each_question_is_a_cell_with_the_recorded_answer_as_its_output():
    code_cells = [cell for cell in cells(EVERYDAY) if cell["cell_type"] == "code"]
    said = ["".join(output["text"] for output in cell["outputs"]) for cell in code_cells]
    assert said == ["", "", "A red\n", " one.\n", "It is.\n"]
    ask, resume, last = [cell["source"] for cell in code_cells[2:]]
    assert ask == (
        "answer = chat.ask(\n"
        "    'Which one is red?\\nSay why.',\n"
        "    images=['a-pictures/01-red.png', 'a-pictures/02-blue.png'],\n"
        "    sampling=gv.Sample(temperature=1.0, top_k=64, top_p=0.95, seed=7),\n"
        "    max_new_tokens=2,\n"
        ")\n"
        "print(answer.text)"
    )
    assert resume.startswith("answer = chat.resume(") and ").answer\n" in resume
    assert "stop=['\\n']" in last and "adapter='poet'" in last


def test_the_first_cells_load_the_model_and_start_the_chat():
    load, start = code(EVERYDAY)[:2]
    assert load.splitlines()[0] == "import gemma3vl_app as gv"
    assert "backend = gv.load('demo')" in load
    assert "local model" not in load
    assert "backend.add_adapter('poet', FOLDER)" in load
    assert start == "chat = gv.Chat(backend, system='Be kind.')"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (ModelIdentity(name="my-model", revision="files:1"), "# It was a local model"),
        (ModelIdentity(name="4b-it", revision="files:1"), "# It was a local model"),
        (ModelIdentity(name="owner/name", revision="0" * 40), f"revision='{'0' * 40}'"),
        (ModelIdentity(name="/home/ann/m"), "gv.load('m')"),
    ],
)
def test_a_model_is_named_as_others_can_find_it(model, told):
    load = code(Transcript((Turn(user("?"), ROOT), answer("!", 0, model=model)), head=1))[0]
    assert told in load
    assert ("local" in load) == ("revision=" not in load)
    assert "/home" not in load


def test_a_changed_system_text_is_set_before_its_question():
    turns = (Turn(user("a"), ROOT), answer("b", 0, system="One."))
    sources = code(Transcript((*turns, Turn(user("c"), 1), answer("d", 2)), head=3))
    assert sources[1] == "chat = gv.Chat(backend, system='One.')"
    assert sources[3] == "chat.system = None"


def test_all_branches_are_asked_when_wanted():
    found = cells(EVERYDAY, branches=True)
    titles = [c["source"] for c in found if c["source"].startswith("## ")]
    assert titles == [f"## Branch {n} of 3" for n in (1, 2, 3)]
    assert sum(c["source"].startswith("chat = gv.Chat(backend") for c in found) == 3


def test_the_cells_make_the_same_conversation(run):
    """Interleaved and mixed pictures, given answers, two questions in a row, a last one open."""
    turns = (
        Turn(user("look: ", RED, " and ", BLUE.with_crops("on")), ROOT),
        Turn(assistant("Given."), 0),
        Turn(user("again"), 1),
        Turn(user(RED.with_crops("off"), BLUE.with_crops("off"), "", "and again"), 2),
        answer("scripted", 3),
        Turn(user("go on from here"), 4),
        Turn(assistant("It isscripted"), 5, (generated("scripted"),)),
        Turn(user("open"), 6),
    )
    transcript = Transcript(turns, head=7, system=None)
    chat = run(transcript, ScriptedBackend(["scripted"]))
    messages = chat.conversation.messages
    assert messages[:-1] == transcript.conversation().messages
    pictures = [(p.sha256, p.crops) for p in chat.conversation.pictures]
    assert pictures == [(p.sha256, p.crops) for p in transcript.conversation().pictures]


def test_options_come_back_as_they_were(run):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    made = generated(
        "!", schema=schema, sampling=Sample(temperature=0.3, top_k=5, seed=9), stop=("a", "'")
    )
    backend = ScriptedBackend(["!"])
    run(Transcript((Turn(user("?"), ROOT), Turn(assistant("!"), 0, (made,))), head=1), backend)
    (request,) = backend.requests
    assert request.sampling == made.sampling
    assert (request.stop, request.max_new_tokens) == (made.stop, made.max_new_tokens)
    assert request.schema["properties"] == schema["properties"]


@settings(deadline=None)
@given(st.text(st.characters(), max_size=50), st.text(st.characters(), max_size=50))
def test_any_text_is_a_value_and_never_code(asked, system):
    made = answer("!", 0, system=system, stop=(asked,), adapter=asked)
    load, start, ask = code(Transcript((Turn(user(asked), ROOT), made), head=1, system=system))
    assert literals(start) == [system]
    found = literals(ask)
    assert asked in found and [asked] in found
    assert names(ask) == {"answer", "chat", "gv", "print"}
    assert names(load) == {"backend", "gv"}


def test_a_hostile_chat_is_values_only():
    for source in code(hostile(), branches=True):
        assert names(source) <= {"answer", "backend", "chat", "gv", "print"}
        imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import)]
        assert all(alias.name == "gemma3vl_app" for each in imports for alias in each.names)


@pytest.mark.slow
def test_a_notebook_of_a_real_chat_runs(tmp_path):
    with gv.load("demo") as backend:
        chat = gv.Chat(backend)
        said = chat.ask("What is in the picture?", images=[CIRCLE]).text
        transcript = chat.transcript
    done = export(transcript, tmp_path / "circle.ipynb")
    again = subprocess.run(
        [sys.executable, "-c", RUN, done.file.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_SEC,
    )
    assert (again.returncode, again.stdout) == (0, f"{said}\n"), again.stderr[-2000:]
    data = json.loads(done.file.read_text(encoding="utf-8"))
    assert [o["text"] for c in data["cells"] for o in c.get("outputs", [])] == [again.stdout]
