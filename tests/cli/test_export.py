"""`gemma3vl export` as people run it."""

import os
import subprocess
import sys

import pytest

from gemma3vl_app.conversation_file import write_chat
from tests.export.chats import EVERYDAY


@pytest.fixture
def chat(tmp_path, monkeypatch):
    """A saved chat in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_chat("two.chat.zip", EVERYDAY)
    return "two.chat.zip"


@pytest.mark.parametrize("suffix", ["html", "md", "ipynb", "jsonl"])
def test_it_writes_the_kind_that_the_name_says_and_tells_so_on_stderr(run, chat, suffix):
    code, out, err = run("export", chat, "--to", f"red.{suffix}")
    assert (code, out) == (0, "")
    told = f"Wrote red.{suffix}"
    told += "." if suffix == "html" else " and 2 pictures in red-pictures."
    assert err.splitlines()[0] == told
    with open(f"red.{suffix}", encoding="utf-8") as file:
        text = file.read()
    assert "Which one is red?" in text and "Is this red?" not in text
    assert os.path.exists("red-pictures/01-red.png") == (suffix != "html")


def test_branches_come_along_when_asked_for(run, chat):
    assert run("export", chat, "--to", "a.html", "--branches")[0] == 0
    with open("a.html", encoding="utf-8") as file:
        assert "Is this red?" in file.read()


def test_notes_follow(run, chat):
    err = run("export", chat, "--to", "a.jsonl")[2]
    assert "an answer that was cut" in err.splitlines()[1]


def test_an_existing_file_is_overwritten_only_by_force(run, chat):
    with open("a.md", "w") as file:
        file.write("mine")
    code, out, err = run("export", chat, "--to", "a.md")
    assert (code, out) == (1, "") and "--force" in err and len(err.splitlines()) == 1
    with open("a.md") as file:
        assert file.read() == "mine"
    assert run("export", chat, "--to", "a.md", "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("two.chat.zip", "--to", "a.pdf"), ".html, .md, .ipynb or .jsonl"),
        (("none.chat.zip", "--to", "a.pdf"), ".html, .md, .ipynb or .jsonl"),  # before reading
        (("none.chat.zip", "--to", "a.md"), "none.chat.zip"),
        (("two.chat.zip", "--to", "no/a.md"), "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_plain_line(run, chat, arguments, told):
    code, out, err = run("export", *arguments)
    assert (code, out) == (1, "")
    assert told in err and len(err.splitlines()) == 1 and "inside" not in err
    assert os.listdir() == [chat]


def test_without_a_target_the_command_line_is_wrong(run, chat):
    assert run("export", chat)[0] == 2


def test_control_characters_of_a_name_do_not_reach_the_terminal(run, chat):
    _, _, err = run("export", chat, "--to", "a\x1b[2J.html")
    assert "\x1b" not in err and "a\ufffd[2J.html" in err


def test_the_help_has_an_example(run):
    assert "Example: gemma3vl export" in run("export", "--help")[1]


def test_it_runs_as_a_program_without_torch(chat):
    program = (
        "import sys\nfrom gemma3vl_app import cli\n"
        "try:\n    cli.main()\nfinally:\n    assert not {'torch', 'gradio'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "export", chat, "--to", "a.html"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Wrote a.html.\n")
