"""A chat on the scripted backend, in a folder of its own, and Ctrl-C for it."""

import io
import os
import signal
import sys
import threading
import time

import pytest
from PIL import Image

import gemma3vl_app.backends.local
from gemma3vl_app.chat import Chat
from gemma3vl_app.cli.chat_commands import handle
from gemma3vl_app.cli.chat_screen import Screen
from gemma3vl_app.cli.chat_talk import Talk
from tests.cli.chat.conversing import Scripted


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """An empty folder to be in, with three pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "cache"))
    for name in ("a.png", "my cat.png", "it's.png"):
        Image.new("RGB", (9, 6), "red").save(tmp_path / name)
    return tmp_path


@pytest.fixture
def backend(monkeypatch):
    """The scripted backend in place of every model."""
    backend = Scripted()
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: backend)
    return backend


@pytest.fixture
def talk(backend):
    return Talk(backend, Chat(backend), Screen(interactive=True), {})


@pytest.fixture
def say(talk, capsys):
    """Handle lines as if typed; return what a person was told beside the answers."""

    def say(*lines):
        capsys.readouterr()
        for line in lines:
            handle(talk, line)
        return capsys.readouterr().err

    return say


@pytest.fixture
def converse(run, monkeypatch):
    """Run the program on lines from a pipe; return exit code, stdout and stderr."""

    def converse(*lines, options=(), model="demo"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", model, *options)

    return converse


@pytest.fixture
def ctrl_c(backend):
    """Press Ctrl-C so many seconds after the next request, as often as asked."""
    over = threading.Event()

    def press(*after):
        before = len(backend.requests)

        def wait_and_press():
            while len(backend.requests) == before:
                if over.wait(0.005):
                    return
            begun = time.monotonic()
            for seconds in after:
                if over.wait(begun + seconds - time.monotonic()):
                    return
                os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=wait_and_press, daemon=True).start()

    yield press
    over.set()
