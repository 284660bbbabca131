"""Owners, order, titles: what a list of conversations shows, and to whom."""

import pytest

from gemma3vl_app.errors import StoreError, UnknownConversationError
from gemma3vl_app.messages import Message
from gemma3vl_app.transcript import Transcript, Turn
from tests.conversation_file.chats import drawn
from tests.store.talks import bytes_of, talk, texts

LONG = "Please tell me which of these two clocks is older, and how you can see that from its hands"


def titles(store, owner="anna", **page):
    return [entry.title for entry in store.list(owner, **page)]


# --- owners ---------------------------------------------------------------------------------------


def everything(store, owner, id):
    """Each method that takes an id."""
    return [
        lambda: store.load(owner, id),
        lambda: store.entry(owner, id),
        lambda: store.save(owner, id, talk("Mine now")),
        lambda: store.rename(owner, id, "Mine"),
        lambda: store.rename(owner, id, ""),
        lambda: store.pin(owner, id),
        lambda: store.delete(owner, id),
    ]


def test_the_conversation_of_another_owner_is_as_one_that_does_not_exist(store):
    entry = store.create("anna", talk("A secret?", pictures=[drawn(3)]))
    said = set()
    for owner, id in [("bert", entry.id), ("Anna", entry.id), ("bert", "f" * 32)]:
        for use in everything(store, owner, id):
            with pytest.raises(UnknownConversationError) as error:
                use()
            said.add(str(error.value))
        assert store.list(owner) == store.search(owner, "secret") == ()
        assert store.delete_all(owner) == 0
    assert len(said) == 1
    assert texts(store.load("anna", entry.id)) == ["A secret?"]
    assert store.entry("anna", entry.id) == entry


def test_an_owner_is_not_written_down(store, folder):
    store.create("secret-of-a-browser", talk("Hello"))
    assert b"secret-of-a-browser" not in bytes_of(folder)


def test_nobody_owns_nothing(store):
    with pytest.raises(StoreError, match="needs an owner"):
        store.create("")
    with pytest.raises(StoreError, match="needs an owner"):
        store.list("")


def test_deleting_all_is_for_one_owner(store):
    for owner in ("anna", "anna", "bert"):
        store.create(owner, talk("Hello"))
    assert store.delete_all("anna") == 2
    assert titles(store) == []
    assert titles(store, "bert") == ["Hello"]


# --- order ----------------------------------------------------------------------------------------


def test_pinned_ones_come_first_then_the_last_changed(store):
    ids = [store.create("anna", talk(name)).id for name in "abcd"]
    assert titles(store) == ["d", "c", "b", "a"]
    store.save("anna", ids[1], talk("b", "More."))
    assert titles(store) == ["b", "d", "c", "a"]
    assert store.pin("anna", ids[0]).pinned
    store.pin("anna", ids[3])
    assert titles(store) == ["d", "a", "b", "c"]
    assert not store.pin("anna", ids[3], False).pinned
    assert titles(store) == ["a", "b", "d", "c"]


def test_a_list_comes_in_pages(store):
    for number in range(7):
        store.create("anna", talk(str(number)))
    pages = [titles(store, offset=offset, limit=3) for offset in (0, 3, 6, 9)]
    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"], []]


# --- titles ---------------------------------------------------------------------------------------


def test_the_first_words_of_the_user_are_the_title_cut_after_a_word(store):
    entry = store.create("anna", talk(f"  {LONG}\n"))
    assert entry.title == "Please tell me which of these two clocks is older, and how…"


def test_a_script_without_spaces_is_cut_too(store):
    title = store.create("anna", talk("这" * 100)).title
    assert title == "这" * 59 + "…"
    assert store.create("anna", talk("e\u0301" * 50)).title == "e\u0301" * 29 + "…"


def test_a_title_is_one_line_that_does_nothing(store):
    assert store.create("anna", talk("a\x1b[31m\n\u202eb\0c\ttail")).title == "a [31m b c tail"


def test_a_conversation_gets_its_title_when_something_is_said(store):
    entry = store.create("anna")
    assert entry.title == ""
    only_pictures = Transcript((Turn(Message("user", (drawn(1),)), -1),), 0)
    assert store.save("anna", entry.id, only_pictures).title == ""
    assert store.save("anna", entry.id, talk("Hello")).title == "Hello"


def test_a_title_that_was_given_stays_until_it_is_taken_back(store):
    entry = store.create("anna", talk("Hello"), title="Greetings")
    assert entry.title == "Greetings"
    assert store.rename("anna", entry.id, " My \n clocks ").title == "My clocks"
    assert store.save("anna", entry.id, talk("Good day")).title == "My clocks"
    assert store.rename("anna", entry.id, "").title == "Good day"
    assert len(store.rename("anna", entry.id, "x" * 10**6).title) <= 200
