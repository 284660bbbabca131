"""The prompt of a chat: keys, history and completion."""

import stat

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.defaults import create_pipe_input
from prompt_toolkit.output import DummyOutput

from gemma3vl_app.cli.chat_input import ChatCompleter, Prompt, line_history


def typed(keys, **options):
    """Return the lines that come of pressing keys."""
    with create_pipe_input() as source:
        source.send_text(keys)
        options = {"label": lambda: "> ", "history": InMemoryHistory(), **options}
        return list(Prompt(source=source, target=DummyOutput(), **options))


def test_enter_sends_and_alt_enter_begins_a_line():
    assert typed("one\rtwo\x1b\rthree\r\r  \r\x04") == ["one", "two\nthree"]


def test_what_was_typed_before_the_prompt_is_in_the_line():
    given = iter(["be"])
    assert typed("fore\r\x04", typed=lambda: next(given, "")) == ["before"]


def test_earlier_lines_come_back_in_the_next_session(here):
    assert typed("remember me\r\x04", history=line_history()) == ["remember me"]
    assert typed("\x1b[A\r\x04", history=line_history()) == ["remember me"]
    file = here / "cache" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_history_that_others_could_read_is_closed_to_them(here):
    file = here / "cache" / "history"
    file.parent.mkdir()
    file.write_text("")
    file.chmod(0o644)
    line_history()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_place_for_the_history_there_is_none(here, monkeypatch):
    (here / "cache").write_text("no folder")
    history = line_history()
    assert typed("one\r\x04", history=history) == typed("\x1b[A\r\x04", history=history) == ["one"]
    monkeypatch.setenv("GEMMA3VL_CACHE", str(here / "other"))
    history = line_history()
    (here / "other" / "history").unlink()
    (here / "other" / "history").mkdir()  # it cannot be written any more
    assert typed("one\r\x04", history=history) == ["one"]


def completions(text):
    found = ChatCompleter().get_completions(Document(text), CompleteEvent())
    return [each.text for each in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/im", ["/image", "/images"]),
        ("/sa", ["/save", "/save!"]),
        ("/image a", [".png"]),
        ("/image my\\ c", ["at.png"]),
        ("/image m", [r"y\ cat.png"]),
        ("/image a.png it", [r"\'s.png"]),
        ("/open sub", ["/"]),
        ("/system a", []),
        ("im", []),
        ("Look at a", []),
    ],
)
def test_commands_and_paths_are_completed(here, text, expected):
    (here / "sub").mkdir()
    assert completions(text) == expected
