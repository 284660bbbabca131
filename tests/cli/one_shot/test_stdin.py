"""What is piped in: pictures, PDFs and texts, and where they go; nothing else is waited for."""

import os
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from tests.cli.one_shot.asking import asked, png


def test_a_picture_on_stdin_belongs_to_the_question(backend, run, folder, pipe):
    pipe(png())
    assert run("ask", "demo", "What?", "--image", "a.png") == (0, "stdin\n", "")
    assert asked(backend) == (["a.png", "stdin"], "What?")


def test_a_picture_on_stdin_has_its_place_where_it_is_asked_for(backend, run, folder, pipe):
    pipe(png())
    assert run("ask", "demo", "What?", "--image", "-", "--image", "a.png")[0] == 0
    assert asked(backend) == (["stdin", "a.png"], "What?")


def test_every_page_of_a_pdf_is_a_picture(backend, run, folder, pipe):
    pipe((folder / "two.pdf").read_bytes())
    assert run("ask", "demo", "What?", "--image", "two.pdf")[0] == 0
    assert asked(backend)[0] == [
        f"{name}, page {number}" for name in ("two.pdf", "stdin") for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("arguments", "piped", "question"),
    [
        (("Summarise this:",), "Some text\n", "Summarise this:\n\nSome text"),
        ((), "What is it?\n", "What is it?"),
        (("-",), "\ufeffWas ist größer?", "Was ist größer?"),
        (("Hello",), "", "Hello"),
        (("Hello",), "BM is how bitmaps begin, and BMW, too", None),
    ],
    ids=["behind the question", "in its place", "asked for", "empty", "like a bitmap"],
)
def test_a_text_on_stdin_is_the_question_or_goes_behind_it(
    backend, run, pipe, arguments, piped, question
):
    pipe(piped.encode())
    assert run("ask", "demo", *arguments)[0] == 0
    assert asked(backend) == ([], question or f"Hello\n\n{piped}")


def test_a_picture_may_come_on_stdin(backend, run, folder, pipe):
    pipe(png())
    assert run("caption") == (0, "stdin\n", "")
    pipe(png())
    assert run("caption", "a.png", "-")[1] == "a.png: a.png\nstdin: stdin\n"
    pipe((folder / "two.pdf").read_bytes())
    assert run("ocr")[1] == "stdin, page 1\n\nstdin, page 2\n"


def test_stdin_is_left_alone_where_pictures_are_named(backend, run, folder, pipe):
    pipe(b"the list of a loop in a shell")
    for command in (("caption", "a.png"), ("ocr", "a.png"), ("compare", "a.png", "b.png")):
        assert run(*command)[0] == 0
        assert sys.stdin.tell() == 0


@pytest.mark.parametrize(
    ("piped", "arguments", "told"),
    [
        (b"\x89PNG\r\n\x1a\n cut", ("What?",), "'stdin' is damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", ("What?",), "'stdin' is damaged"),
        (b"\xff\x00 nothing known", ("What?",), "'stdin' is not a picture"),
        (b"x" * ((1 << 20) + 1), ("What?",), "the limit is 1,048,576"),
        (b"\0" * ((25 << 20) + 1), ("What?",), "longer than 25 MiB"),
        (b"some text", ("What?", "--image", "-"), "a text, not a picture"),
        (b"", ("What?", "--image", "-"), "Nothing came on stdin"),
        (b"", ("-",), "Nothing came on stdin"),
        (b"", (), "question is empty"),
        (b" \n", (), "question is empty"),
        (png(), ("-",), "Write it"),
    ],
)
def test_what_is_wrong_with_stdin_is_one_line(backend, run, pipe, piped, arguments, told):
    pipe(piped)
    code, out, err = run("ask", "demo", *arguments)
    assert (code, out) == (1, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not backend.requests


def test_stdin_cannot_be_two_things(backend, run, folder):
    assert run("ask", "demo", "-", "--image", "-")[0] == 2
    assert run("ask", "demo", "What?", "--image", "-", "--image", "-")[0] == 2
    assert run("caption", "-", "a.png", "-")[0] == 2


def test_a_real_pipe_is_read_to_its_end(backend, run, monkeypatch):
    ends = os.pipe()
    os.write(ends[1], b"Hello ")

    def say_the_rest():
        time.sleep(0.2)  # what is there already has been read by then
        os.write(ends[1], b"you")
        os.close(ends[1])

    threading.Thread(target=say_the_rest).start()
    with open(ends[0], encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("ask", "demo")[:2] == (0, "Hello you\n")


@pytest.mark.parametrize("where", ["/dev/null", "terminal", "closed"])
def test_nothing_else_is_read_or_waited_for(backend, run, monkeypatch, where):
    with ExitStack() as ends:
        stdin = None
        if where == "terminal":
            ours, theirs = os.openpty()
            ends.callback(os.close, ours)
            stdin = ends.enter_context(open(theirs, encoding="utf-8"))
        elif where != "closed":
            stdin = ends.enter_context(open(where, encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("ask", "demo", "Hello")[:2] == (0, "Hello\n")
        code, _, err = run("ask", "demo", "Hello", "--image", "-")
        assert (code, "Nothing came on stdin" in err) == (1, True)
