"""The commands of a chat: pictures, what is said, and what is told about it."""

import io
import re
import sys

import pytest
from PIL import Image

from gemma3vl_app.chat import Chat
from gemma3vl_app.cli.chat_commands import COMMANDS, handle, paths_in
from gemma3vl_app.cli.chat_screen import Screen
from gemma3vl_app.cli.chat_talk import Talk
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Sample, Status
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from gemma3vl_app.wording import describe
from tests.cli.chat.conversing import names, texts

# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("a.png", ["a.png"]),
        ("a.png  b.png", ["a.png", "b.png"]),
        (r"my\ cat.png a.png", ["my cat.png", "a.png"]),
        ("'my cat.png' \"a b.png\"", ["my cat.png", "a b.png"]),
        ("my cat.png", ["my cat.png"]),  # it exists
        ("it's.png", ["it's.png"]),
        ("isn't there.png", ["isn't there.png"]),
        ("file:///tmp/my%20cat.png", ["/tmp/my cat.png"]),
        ("", []),
        ("a" * 5000, ["a" * 5000]),
    ],
)
def test_paths_are_understood_as_typed_and_pasted(typed, paths):
    assert [str(path) for path in paths_in(typed)] == paths


def test_the_home_folder_has_its_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(path) for path in paths_in("~/x.png")] == ["/home/me/x.png"]


def test_pictures_go_with_the_next_message_only(say, talk, backend):
    assert say(r"/image my\ cat.png a.png") == "my cat.png, 9 x 6\na.png, 9 x 6\n"
    assert say("/images") == say("/image") == "my cat.png, 9 x 6\na.png, 9 x 6\n"
    say("Which?", "And?")
    first, _, second, _ = talk.chat.conversation.messages
    assert names(first) == ["my cat.png", "a.png"] and names(second) == []
    assert "No picture is attached" in say("/images")


def test_attached_pictures_can_be_dropped_again(say, talk):
    say("/image a.png", "/image -", "Well?")
    assert not talk.chat.conversation.pictures


@pytest.mark.parametrize("line", ["{here}/a.png", "'{here}/my cat.png' a.png", "a.png "])
def test_a_dropped_picture_is_attached(say, talk, here, line):
    say(line.format(here=here))
    assert talk.attached and not talk.chat.conversation.messages


def test_a_message_about_a_file_is_a_message(say, talk):
    say("Compare it with a.png", "no-such.png")
    assert texts(talk)[::2] == ["Compare it with a.png", "no-such.png"]


def test_pages_of_a_pdf_are_pictures(say, talk, here):
    pages = [Image.new("RGB", (60, 40), "white") for _ in range(6)]
    pages[0].save(here / "doc.pdf", save_all=True, append_images=pages[1:])
    told = say("/image doc.pdf")
    assert len(talk.attached) == 6
    assert "doc.pdf, page 6, " in told


def test_crops_hold_for_pictures_sent_from_then_on(say, backend):
    say("/image a.png", "One?", "/crops on", "/image a.png", "Two?")
    first, second = backend.requests[-1].conversation.pictures
    assert (first.crops, second.crops) == ("auto", "on")
    with pytest.raises(ConversationError, match="auto, on or off, not 'maybe'"):
        say("/crops maybe")
    assert "sent from now on: on." in say("/crops")


def test_one_bad_picture_attaches_none(say, talk):
    with pytest.raises(Exception, match=r"none\.png"):
        say("/image a.png none.png")
    assert not talk.attached


def test_a_model_without_pictures_says_so_at_once(backend, say):
    backend._capabilities = type(DEFAULT_CAPABILITIES)(
        model="text", knows="", context_tokens=9, image_tokens=0
    )
    with pytest.raises(ConversationError, match="takes no pictures"):
        say("/image a.png")


# --- what is said ---------------------------------------------------------------------------------


def test_the_system_text_is_shown_set_and_dropped(say, talk, backend):
    assert "no system text" in say("/system")
    assert "whole conversation" in say("/system Be brief.\nBe kind.")
    assert say("/system") == "Be brief.\nBe kind.\n"
    say("Hi", "/system -", "Hi")
    assert [r.conversation.system for r in backend.requests] == ["Be brief.\nBe kind.", None]


def test_undo_steps_back(say, talk):
    say("One", "Two")
    assert "you: One" in say("/undo")
    assert texts(talk) == ["One", "One"]
    assert "beginning" in say("/undo")
    with pytest.raises(ConversationError, match="nothing to undo"):
        say("/undo")


def test_retry_answers_again_and_keeps_both(say, talk, backend):
    say("One")
    backend.says("Another.")
    assert "expect the same answer" in say("/retry")
    assert texts(talk) == ["One", "Another."]
    assert "version 2 of 2" in say("/branch")
    say("/branch 2 1")
    assert texts(talk) == ["One", "One"]


def test_retry_draws_with_another_seed(say, talk, backend):
    talk.chat.sampling = Sample(seed=7)
    say("One", "/retry", "/retry", "Two")
    assert [request.sampling.seed for request in backend.requests] == [7, 8, 9, 7]


def test_edit_rephrases_the_last_message_and_keeps_its_pictures(say, talk):
    with pytest.raises(ConversationError, match="ask something first"):
        say("/edit Anything")
    say("/image a.png", "What?", "/edit Who?")
    assert texts(talk) == ["Who?", "Who?"]
    assert names(talk.chat.conversation.messages[0]) == ["a.png"]


def test_resume_goes_on_with_an_answer_that_was_cut(say, talk, capsys):
    talk.options = {"max_new_tokens": 2}
    assert "/resume goes on" in say("one two three four")
    talk.backend.says("three ", "four")
    handle(talk, "/resume")
    assert capsys.readouterr().out == "three four\n"
    assert texts(talk)[-1] == "one two three four"


def test_branch_lists_goes_back_and_switches(say, talk):
    say("One", "Two", "/branch 2", "Three")
    assert texts(talk) == ["One", "One", "Three", "Three"]
    listed = say("/branch").splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["1", "you"],
        ["2", "model"],
        ["3", "you"],
        ["4", "model"],
    ]
    assert listed[2].rstrip().endswith("version 2 of 2")
    say("/branch 3 1")
    assert texts(talk)[2:] == ["Two", "Two"]
    assert "beginning" in say("/branch 0")
    assert "Nothing has been said" in say("/branch")


@pytest.mark.parametrize("typed", ["3", "-1", "1 2", "1 0", "x", "1 1 1", "0 1", "9" * 99])
def test_a_branch_that_is_none_is_told_and_changes_nothing(say, talk, typed):
    say("One")
    with pytest.raises(ConversationError):
        say(f"/branch {typed}")
    assert texts(talk) == ["One", "One"]


def test_a_message_that_begins_with_a_slash(say, talk):
    say("//image is a command")
    assert texts(talk)[0] == "/image is a command"


@pytest.mark.parametrize(
    ("line", "told"),
    [("/imgae a.png", "Did you mean /image?"), ("/xyzzy", "/help lists them"), ("/", "/help")],
)
def test_an_unknown_command_is_told_with_the_nearest(say, line, told):
    with pytest.raises(ConversationError) as error:
        say(line)
    assert told in str(error.value)


def test_help_names_every_command(say):
    lines = say("/help").splitlines()
    for command in COMMANDS:
        (line,) = (line for line in lines if line.split()[0] == f"/{command.name}")
        assert command.arguments in line and command.help[:20] in line
    told = [line.split()[0] for line in lines]
    for name in [
        "image",
        "images",
        "system",
        "undo",
        "retry",
        "branch",
        "crops",
        "stats",
        "save",
        "open",
        "resume",
        "help",
        "quit",
    ]:
        assert f"/{name}" in told


def test_stats_tell_what_was_used_and_reused(say):
    # The scripted backend counts words, and 64 for a picture.
    told = say("/image a.png", "one two", "three", "/image a.png", "/stats")
    assert re.search(r"model +scripted", told)
    assert re.search(r"context +70 of 8,192 tokens", told)
    assert re.search(r"turns +2", told)
    assert re.search(r"pictures +1, 1 more attached", told)
    assert re.search(r"tokens +72 computed, 66 reused", told)  # 66 + 2 said, 3 new + 1 said
    assert re.search(r"last answer +1 token · 69 in the prompt, 66 of them cached", told)


def test_quit_ends_the_chat(say, talk):
    say("/quit")
    assert talk.ended


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (Status("queued", 2), "waiting, 2 ahead"),
        (Status("queued"), "waiting"),
        (Status("vision", 1, 2), "looking at picture 1 of 2"),
        (Status("prefill", 300, 900), "reading 300 of 900 tokens"),
    ],
)
def test_a_status_reads_as_people_say_it(status, line):
    assert describe(status) == line


def test_markup_and_controls_of_others_are_text(say, talk, capsys):
    assert "[red]no[/red]" in say("[red]no[/red] \x1b[2J", "/branch")
    assert "\x1b" not in say("/branch")
    assert "you: [red]no[/red] \ufffd[2J\n" in say("/branch 2")
    with pytest.raises(Exception) as error:
        say("/image [red]\x1b[2J.png")
    talk.screen.error(str(error.value))
    assert "\x1b" not in capsys.readouterr().err


def test_an_answer_cannot_command_the_terminal(backend, monkeypatch):
    class Tty(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Tty())
    backend.says("A \x1b[2J\x1b]52;c;aGk=\x07 red one.\n")
    handle(Talk(backend, Chat(backend), Screen(interactive=True), {}), "Well?")
    shown = sys.stdout.getvalue()
    assert "A \ufffd[2J\ufffd]52;c;aGk=\ufffd red one.\n" in shown
    assert "\x1b[2J" not in shown and "\x1b]52" not in shown
