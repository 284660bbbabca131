"""What the README and the docs tell people to do really works."""

import dataclasses
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import gemma3vl_app.backends.load
import gemma3vl_app.server
from gemma3vl_app import cli
from gemma3vl_app.benchmark.ceilings import Ceilings
from gemma3vl_app.benchmark.speed import Speed
from gemma3vl_app.chat import Chat
from gemma3vl_app.cli import bench, verify
from gemma3vl_app.conversation_file import SUFFIX
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES, ScriptedBackend
from tests import shown_programs
from tests.cli.test_verify import EQUAL, on_paths, two
from tests.evaluation.shown import prepare
from tests.folders.naming_backend import draw_pictures
from tests.loading.peft_adapters import TEXT, save_adapter

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = dataclasses.replace(DEFAULT_CAPABILITIES, model="demo")
RUN_SEC = 300  # the first use of the demo on a machine converts it


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of `page` in one of `languages`."""
    fences = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for language, text in fences if language in languages]


def commands(page: Path) -> list[list[str]]:
    lines = [line for text in blocks(page, "bash", "sh") for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def program(page: Path) -> str:
    """All Python of a page, top to bottom, as one program."""
    return "\n".join(blocks(page, "python"))


NEEDS_THE_EXTRA = {"notebooks.md": [pytest.mark.notebook]}
PROGRAMS = [
    pytest.param(path, id=path.name, marks=NEEDS_THE_EXTRA.get(path.name, []))
    for path in PAGES
    if program(path).strip()
]
COMMANDS = [pytest.param(c, id=f"{p.name}: {shlex.join(c)}") for p in PAGES for c in commands(p)]


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS)
def test_the_python_people_are_shown_runs(path, tmp_path):
    if path.name == "adapters.md":  # the adapters that it speaks of
        for name in ("pirate", "poet"):
            save_adapter("demo", tmp_path / "runs" / name, target_modules=TEXT)
    if path.name in ("notebooks.md", "explain.md"):
        shutil.copy(ROOT / "docs" / "circle.png", tmp_path)
    ended = shown_programs.run(program(path), tmp_path, RUN_SEC)
    assert ended.code == 0, ended.err[-2000:]
    if path.name == "README.md":
        assert "red circle" in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_people_are_shown_exist(command, monkeypatch, tmp_path, capsys):
    if "|" in command and command[0] in ("printf", "cat"):  # what it is fed does not matter here
        command = command[command.index("|") + 1 :]
    if command[0] == "source":
        assert command[1:] == [".venv/bin/activate"]
    elif command[0] == "find":
        assert "runs/megatron" in command  # done for real by tests/conversion/test_docs.py
    elif command[0] == "make":
        targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
        assert set(command[1:]) <= set(targets)
    else:
        assert command[0] == "gemma3vl"
        run_on_scripted_backend(command, monkeypatch, tmp_path)


def run_on_scripted_backend(command: list[str], monkeypatch, folder: Path) -> None:
    """Run a `gemma3vl` command for real, but for the model and the server."""
    for name in [word for word in command if word.endswith((".png", ".jpg", ".gguf"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gguf"):
            (folder / name).touch()
        else:
            Image.new("RGB", (9, 9), "red").save(folder / name)
    for name in [word for word in command if word.endswith(SUFFIX)]:
        chat = Chat(ScriptedBackend(capabilities=DEMO))
        chat.ask("What is in the picture?", images=[Image.new("RGB", (9, 9), "red")])
        chat.save(folder / name)
    if "evaluate" in command:
        prepare(command, folder, monkeypatch)
    if "photos" in command:
        draw_pictures(folder / "photos", "1.png", "2.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GEMMA3VL_CACHE", str(folder / "cache"))  # a page shows how to clean it
    monkeypatch.setattr(
        gemma3vl_app.backends.load, "load", lambda *_, **__: ScriptedBackend(capabilities=DEMO)
    )
    monkeypatch.setattr(gemma3vl_app.server, "serve", lambda *_, **__: None)
    nothing = Speed(ceilings=Ceilings(1.0, 1.0), figures=(), sec_per_token={})
    about = {"model": "", "weights": "", "arithmetic": ""}
    monkeypatch.setattr(bench, "_measured", lambda *_, **__: (about, nothing))
    # Really run, on a tiny checkpoint, in tests/faithfulness/test_docs.py
    monkeypatch.setattr(verify, "_two", lambda *_, **__: two(EQUAL))
    monkeypatch.setattr(verify, "_paths", lambda *_, **__: on_paths(EQUAL))
    if command[1] == "convert":  # tests/conversion/test_docs.py really converts
        monkeypatch.setattr("gemma3vl_app.conversion.converting.convert", lambda _, out, **__: out)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def test_every_make_target_named_in_a_page_exists():
    targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        named = re.findall(r"`make ([\w-]+)`", page.read_text(encoding="utf-8"))
        assert set(named) <= set(targets), page.name


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_command_line_really_asks_the_demo(tmp_path):
    picture = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(picture).ellipse((64, 64, 192, 192), fill="red")
    picture.save(tmp_path / "circle.png")
    command = ["ask", "demo", "What color is the circle?", "--image", "circle.png"]
    done = subprocess.run(
        [sys.executable, "-m", "gemma3vl_app.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_SEC,
    )
    assert (done.returncode, done.stdout) == (0, "Red.\n"), done.stderr[-2000:]
