"""How an answer is shown: cut, interrupted, on a terminal or in a pipe, or by the demo."""

import sys
from dataclasses import replace

import pytest

from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.cli.one_shot.asking import png


def test_an_answer_that_is_interrupted_ends_its_line(backend, run):
    backend._chunks, backend._error = ["The image"], KeyboardInterrupt()
    assert run("ask", "demo", "What?") == (130, "The image\n", "")


def test_an_answer_that_was_cut_is_told_apart_from_a_finished_one(backend, run, folder):
    for command in (("ask", "demo", "?"), ("caption",), ("compare", "b.png")):
        image = ("--image", "a.png") if command[0] == "ask" else ("a.png",)
        code, _, err = run(*command, *image, "--max-new-tokens", "1")
        assert code == 0
        assert "Cut after 1 token. Raise --max-new-tokens for more." in err
    assert "Cut" not in run("ask", "demo", "Hi")[2]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("ask", "demo", "Hi", "--image", "a.png"), "a\ufffd[2Jb\n"),
        (("ocr", "a.png"), "a\ufffd[2Jb\n"),
        (("caption", "a.png", "bad\x1b.png"), "a.png: a\ufffd[2Jb\nbad\ufffd.png: bad .png\n"),
    ],
)
def test_a_terminal_gets_no_commands_but_a_pipe_the_text_as_it_is(
    backend, run, folder, monkeypatch, command, shown
):
    (folder / "bad\x1b.png").write_bytes(png())
    backend.texts = {"a.png": ["a\x1b[2J", "b"]}
    assert "\x1b[2J" in run(*command)[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(*command)[1] == shown


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("ocr", "a.png"), "reads a few large words"),
        (("compare", "a.png", "b.png"), "hardly compares pictures"),
        (("extract", "a.png", "--schema", "s.json"), "the data it gives are guesses"),
        (("caption", "a.png"), ""),
    ],
)
def test_the_demo_says_what_it_cannot(backend, run, folder, command, told):
    backend._capabilities = replace(DEFAULT_CAPABILITIES, model="demo")
    if command[0] == "extract":
        backend._chunks = ["{}"]
    code, _, err = run(*command)
    assert code == 0
    assert told in err and bool(err) == bool(told)
