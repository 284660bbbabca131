"""Saving a chat and opening it again."""

import re

import pytest

from gemma3vl_app.errors import ConversationError
from tests.cli.chat.conversing import names, texts


def test_a_saved_chat_can_be_opened(say, talk, here):
    say("/image a.png", "/system Be brief.", "One", "/save my\\ talk.zip", "/branch 0", "Other")
    with pytest.raises(ConversationError, match="not saved"):
        say('/open "my talk.zip"')
    assert texts(talk) == ["Other", "Other"]
    assert "model: One" in say('/open! "my talk.zip"')
    assert texts(talk) == ["One", "One"]
    assert talk.chat.system == "Be brief."
    assert names(talk.chat.conversation.messages[0]) == ["a.png"]


def test_without_a_name_the_day_names_the_file_and_it_stays_the_chats_own(say, here):
    say("One", "/save")
    (file,) = here.glob("chat-*.chat.zip")
    assert re.fullmatch(r"chat-\d{4}-\d\d-\d\d-\d{4}\.chat\.zip", file.name)
    before = file.read_bytes()
    assert file.name in say("Two", "/save")
    assert list(here.glob("chat-*")) == [file]
    assert file.read_bytes() != before


def test_a_file_of_somebody_else_is_not_replaced_unasked(say, here):
    (here / "notes.zip").write_text("mine")
    say("One")
    with pytest.raises(ConversationError, match=r"/save! notes\.zip"):
        say("/save notes.zip")
    assert (here / "notes.zip").read_text() == "mine"
    say("/save! notes.zip", "/open notes.zip", "Two", "/save notes.zip")


def test_an_empty_chat_is_not_saved(say):
    with pytest.raises(ConversationError, match="nothing to save"):
        say("/save")


def test_what_cannot_be_opened_leaves_the_chat_as_it_is(say, talk, here):
    (here / "bad.zip").write_text("no chat")
    say("One", "/save x.zip")
    for name in ("bad.zip", "none.zip", ".", "two files", ""):
        with pytest.raises(ConversationError):
            say(f"/open {name}")
    assert texts(talk) == ["One", "One"]
    assert talk.saved_as.name == "x.zip"


def test_the_program_opens_a_saved_chat(converse, backend, say):
    say("One", "/save x.zip")
    code, out, err = converse("Two", options=["--open", "x.zip", "--system", "Be brief."])
    assert (code, out) == (0, "Two\n")
    assert "model: One" in err
    request = backend.requests[-1]
    assert [m.text for m in request.conversation.messages] == ["One", "One", "Two"]
    assert request.conversation.system == "Be brief."
