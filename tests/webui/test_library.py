"""Who sees which conversations, and what is left of them later."""

import gc
import time
import weakref

import pytest

from gemma3vl_app.errors import ConversationError, UnknownConversationError
from gemma3vl_app.pictures import Picture
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.library import Library
from tests.picture_files import photo

ANNA, BEN = "anna", "ben"


@pytest.fixture
def backend():
    return ScriptedBackend(["Yes."])


@pytest.fixture
def store(tmp_path):
    with ConversationStore(tmp_path / "conversations") as store:
        yield store


@pytest.fixture
def library(backend, store):
    return Library(lambda: backend, store)


def ask(opened, text, *pictures):
    opened.live.begin(lambda chat: chat.stream(text, images=pictures))
    return list(opened.live.watch())[-1]


def texts(opened):
    return [message.text for message in opened.live.moment.messages]


def settled(opened):
    """Wait until the last save is over."""
    opened.live.change(lambda chat: None)


def test_a_conversation_is_the_same_one_in_every_tab_of_its_owner(library):
    opened = library.new(ANNA)
    ask(opened, "Hello")
    assert library.open(ANNA, opened.id).live is opened.live


def test_nobody_else_finds_it(library):
    opened = library.new(ANNA)
    ask(opened, "Hello")
    settled(opened)
    for act in (library.open, library.delete, lambda who, id: library.rename(who, id, "mine")):
        with pytest.raises(UnknownConversationError):
            act(BEN, opened.id)
    assert library.entries(BEN) == ()
    assert library.search(BEN, "hello") == ()
    assert [entry.id for entry in library.entries(ANNA)] == [opened.id]


def test_people_share_no_salt_and_one_person_s_conversations_do(library, backend):
    for owner in (ANNA, ANNA, BEN):
        ask(library.new(owner), "Hello")
    first, second, third = [request.session for request in backend.requests]
    assert first == second != third
    assert ANNA not in first


def test_it_is_there_after_a_restart_with_its_pictures(library, backend, store):
    opened = library.new(ANNA)
    picture = Picture.open(photo())
    ask(opened, "What is it?", picture)
    settled(opened)
    again = Library(lambda: backend, store).open(ANNA, opened.id)
    assert again.id == opened.id
    assert texts(again) == ["What is it?", "Yes."]
    assert again.live.moment.messages[0].pictures == (picture,)
    ask(again, "And now?")
    settled(again)
    assert store.entry(ANNA, opened.id).turns == 4


def test_what_was_only_looked_at_is_not_stored(library):
    library.new(ANNA)
    assert library.entries(ANNA) == ()


def test_a_deleted_one_is_gone_even_while_it_answers(library, store):
    library._backend = lambda: ScriptedBackend(["word "] * 500, seconds_per_chunk=0.01)
    opened = library.new(ANNA)
    opened.live.begin(lambda chat: chat.stream("Go"))
    began = time.monotonic()
    while not opened.live.moment.said:
        assert time.monotonic() - began < 10
    library.delete(ANNA, opened.id)
    assert not list(opened.live.watch())[-1].answering
    with pytest.raises(ConversationError, match="was deleted"):
        settled(opened)
    assert store.list(ANNA) == ()
    with pytest.raises(UnknownConversationError):
        library.open(ANNA, opened.id)


def test_one_that_a_page_still_shows_is_the_same_one_whoever_opens_it(backend, store):
    library = Library(lambda: backend, store, open_at_most=1)
    shown = library.new(ANNA)
    ask(shown, "Hello")
    for _ in range(3):
        ask(library.new(BEN), "Hi")
    assert library.open(ANNA, shown.id).live is shown.live


def test_pages_that_are_only_looked_at_make_nobody_forget(backend):
    library = Library(lambda: backend, open_at_most=2)
    opened = library.new(ANNA)
    ask(opened, "Hello")
    id = opened.id
    del opened
    for _ in range(10):
        library.new(BEN)
    gc.collect()
    assert texts(library.open(ANNA, id)) == ["Hello", "Yes."]


def test_those_at_rest_leave_memory_and_come_back_from_the_store(backend, store):
    library = Library(lambda: backend, store, open_at_most=1)
    opened = library.new(ANNA)
    ask(opened, "First")
    settled(opened)
    id, rests = opened.id, weakref.ref(opened.live)
    del opened
    later = library.new(ANNA)
    ask(later, "Second")
    settled(later)
    gc.collect()
    assert rests() is None
    assert texts(library.open(ANNA, id)) == ["First", "Yes."]


def test_one_that_answers_stays_in_memory(store):
    slow = ScriptedBackend(["word "] * 50, seconds_per_chunk=0.02)
    library = Library(lambda: slow, store, open_at_most=1)
    opened = library.new(ANNA)
    opened.live.begin(lambda chat: chat.stream("Go"))
    for _ in range(3):
        library.new(ANNA)
    assert library.open(ANNA, opened.id).live is opened.live


def test_without_a_store_they_last_as_long_as_the_process(backend):
    library = Library(lambda: backend)
    opened = library.new(ANNA)
    ask(opened, "Hello")
    assert texts(library.open(ANNA, opened.id)) == ["Hello", "Yes."]
    assert library.entries(ANNA) == ()
    with pytest.raises(UnknownConversationError, match="started again"):
        Library(lambda: backend).open(ANNA, opened.id)


def test_the_model_of_the_moment_answers(library, backend):
    opened = library.new(ANNA)
    ask(opened, "One")
    other = ScriptedBackend(["From another model."])
    library._backend = lambda: other
    assert texts(opened)[-1] == "Yes."
    reopened = library.new(ANNA, opened.live.transcript)
    assert ask(reopened, "Two").messages[-1].text == "From another model."
