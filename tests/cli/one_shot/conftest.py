"""A folder with pictures, a scripted model in place of every other, and files on stdin."""

import json
import sys
from contextlib import ExitStack

import pytest
from PIL import Image

import gemma3vl_app.backends.local
from tests.cli.one_shot.asking import Echo

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "round": {"type": "boolean"}},
    "required": ["colour", "round"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with pictures, a PDF of two pages, and a schema."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 80), "red").save(name)
    page = Image.new("RGB", (60, 80), "white")
    page.save("two.pdf", "PDF", save_all=True, append_images=[page])
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    return tmp_path


@pytest.fixture
def backend(monkeypatch):
    """A scripted backend in place of every model; it answers a picture with its name."""
    backend = Echo()

    def load(model, **wishes):
        backend.loaded, backend._closed = model, False
        for name, path in (wishes.get("adapters") or {}).items():
            backend.add_adapter(name, path)
        return backend

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    return backend


@pytest.fixture
def pipe(monkeypatch, tmp_path):
    """Let stdin be a file of these bytes."""
    with ExitStack() as files:

        def pipe(data: bytes):
            (tmp_path / "piped in").write_bytes(data)
            file = files.enter_context(open(tmp_path / "piped in", encoding="utf-8"))
            monkeypatch.setattr(sys, "stdin", file)

        yield pipe
