"""Every one-shot command as a process of its own, and with a real model."""

import json
import subprocess
import sys

import pytest

import gemma3vl_app.backends.local
from tests.cli.one_shot.asking import png

FIVE = ("--max-new-tokens", "5", "--json")
COMMANDS = {
    "ask": ("ask", "{model}", "--seed", "1", *FIVE),
    "caption": ("caption", "-", "a.png", "--model", "{model}", *FIVE),
    "ocr": ("ocr", "two.pdf", "--model", "{model}", *FIVE),
    "compare": ("compare", "a.png", "b.png", "--model", "{model}", *FIVE),
    "extract": ("extract", "a.png", "--schema", "s.json", "--model", "{model}"),
}
INPUTS = {"ask": b"How are you?", "caption": png()}
SCRIPTED = """
import sys, types
local = types.ModuleType("gemma3vl_app.backends.local")  # spares the import of torch
sys.modules[local.__name__] = local
from gemma3vl_app.testing import ScriptedBackend
local.load = lambda *_, **__: ScriptedBackend(['{"said": "yes"}'])
from gemma3vl_app import cli
sys.argv[0] = "gemma3vl"
cli.main()
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_process(folder, name):
    words = [word.replace("{model}", "demo") for word in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTED, *words],
        input=INPUTS.get(name, b""),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    said = {"said": "yes"}
    assert all(line == said or json.loads(line["text"].split("\n")[0]) == said for line in lines)
    assert len(lines) == (2 if name == "caption" else 1)


@pytest.mark.slow
def test_every_command_works_with_a_real_model(folder, tiny, run, pipe, monkeypatch):
    told = {}
    with gemma3vl_app.backends.local.load(tiny) as backend:  # once for all: that is what takes long
        close = backend.close
        monkeypatch.setattr(backend, "close", lambda: None)
        monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: backend)
        for name, words in COMMANDS.items():
            pipe(INPUTS.get(name, b""))
            code, out, err = run(*(word.replace("{model}", str(tiny)) for word in words))
            cut = name == "ocr"
            assert code == (3 if cut else 0), (name, err)
            notes = err.splitlines()
            assert all("ut " in line and "Raise --max-new-tokens" in line for line in notes), notes
            assert notes or not cut
            told[name] = [json.loads(line) for line in out.splitlines()]
        close()
    assert told["ask"][0]["usage"]["prompt_tokens"] > 10
    assert [each["picture"] for each in told["caption"]] == ["stdin", "a.png"]
    assert [page["complete"] for page in told["ocr"][0]["pages"]] == [False, False]
    assert told["compare"][0]["usage"]["image_tokens"] == 32
    assert told["extract"][0].keys() == {"colour", "round"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom gemma3vl_app import cli\nsys.argv = ['gemma3vl', 'ocr', '--help']\n"
        "try:\n    cli.main()\nfinally:\n    print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Example: gemma3vl ocr" in done.stdout
    heavy = {"torch", "transformers", "numpy", "PIL", "pypdfium2"}
    assert not heavy & set(done.stderr.split())
