"""What is saved is what is loaded, and a save writes only what is new."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings

from gemma3vl_app.chat import Chat
from gemma3vl_app.conversation_file import read_chat, write_chat
from gemma3vl_app.errors import StoreError, UnknownConversationError
from gemma3vl_app.messages import Message, Text
from gemma3vl_app.store import ConversationStore, rows, tables
from gemma3vl_app.store import store as store_module
from gemma3vl_app.testing.scripted import ScriptedBackend
from gemma3vl_app.transcript import ROOT, ModelIdentity, Transcript, Turn
from tests.conversation_file.chats import chat, drawn, generated
from tests.conversation_file.test_files import transcripts
from tests.store.talks import ask, is_intact, talk, texts


def picture_names(transcript):
    return [[picture.name for picture in turn.message.pictures] for turn in transcript.turns]


def written_rows(store, save) -> int:
    """How many rows `save()` wrote."""
    before = store._database._db.total_changes
    save()
    return store._database._db.total_changes - before


# --- round trip -----------------------------------------------------------------------------------


def test_everything_comes_back(store):
    entry = store.create("anna", chat())
    found = store.load("anna", entry.id)
    assert found == chat()
    assert picture_names(found) == picture_names(chat())
    assert [p.data for p in found.turns[0].message.pictures] == [drawn(10).data, drawn(20).data]
    assert found.turns[0].message.pictures[0].rgb.getpixel((0, 0)) == (10, 10, 10)
    assert (entry.turns, entry.pictures) == (4, 2)


def test_everything_is_there_after_a_restart(folder):
    with ConversationStore(folder) as store:
        entry = store.create("anna", chat(), title="Clocks")
        store.pin("anna", entry.id)
    with ConversationStore(folder) as store:
        assert store.load("anna", entry.id) == chat()
        assert store.list("anna") == (replace(entry, pinned=True),)
        assert store.notice is None


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(transcripts(), transcripts())
def test_any_chat_comes_back_as_it_was_whatever_was_saved_before(store, before, after):
    entry = store.create("anna", before)
    store.save("anna", entry.id, after)
    found = store.load("anna", entry.id)
    assert found == after
    assert picture_names(found) == picture_names(after)
    assert store.entry("anna", entry.id).turns == len(after.turns)


def test_a_chat_goes_on_after_it_was_loaded(store):
    backend = ScriptedBackend()  # which says what it is told
    first = Chat(backend)
    first.ask("Red.", images=[drawn(10)])
    entry = store.create("anna", first.transcript)
    again = Chat.from_transcript(store.load("anna", entry.id), backend)
    again.ask("A circle.")
    store.save("anna", entry.id, again.transcript)
    assert texts(store.load("anna", entry.id)) == ["Red.", "Red.", "A circle.", "A circle."]


def test_a_conversation_can_be_exported_and_imported(store, tmp_path):
    entry = store.create("anna", chat())
    path = write_chat(tmp_path / "x.chat.zip", store.load("anna", entry.id))
    copy = store.create("anna", read_chat(path))
    assert store.load("anna", copy.id) == chat()


def test_a_transcript_that_lost_turns_loses_the_rows(store, folder):
    entry = store.create("anna", talk("One?", "One.", "Two?", "Two."))
    store.save("anna", entry.id, talk("One?", "One."))
    assert texts(store.load("anna", entry.id)) == ["One?", "One."]
    assert ask(folder, "SELECT count(*) FROM turns") == [(2,)]


# --- only what is new is written ------------------------------------------------------------------


def long_talk(turns: int) -> Transcript:
    models = [ModelIdentity(name=name) for name in ("a", "b")]
    found = talk(*(f"Message {place}" for place in range(turns)))
    return replace(
        found,
        turns=tuple(
            replace(turn, generated=(generated(model=models[place // 2 % 2]),))
            if turn.generated
            else turn
            for place, turn in enumerate(found.turns)
        ),
    )


def grown(transcript: Transcript, text: str) -> Transcript:
    turn = Turn(Message("user", (Text(text),)), len(transcript.turns) - 1)
    return replace(transcript, turns=(*transcript.turns, turn), head=len(transcript.turns))


@pytest.mark.parametrize("process", ["the same", "another"])
def test_a_turn_more_in_a_long_chat_writes_its_own_row_only(store, folder, process):
    entry = store.create("anna", long_talk(500))
    transcript = grown(store.load("anna", entry.id), "More?")
    if process == "another":  # which knows nothing of what is stored
        store = ConversationStore(folder)
    # the conversation's `about` and `changed`, and the turn
    assert written_rows(store, lambda: store.save("anna", entry.id, transcript)) == 3
    assert store.load("anna", entry.id) == transcript
    if process == "another":
        store.close()


def test_stored_turns_are_not_even_looked_at(store, monkeypatch):
    entry = store.create("anna", long_talk(500))
    transcript = store.load("anna", entry.id)
    encoded, to_rows = [], rows.to_rows

    def noting(transcript, files, first):
        encoded.append(len(transcript.turns) - first)
        return to_rows(transcript, files, first)

    monkeypatch.setattr(store_module, "to_rows", noting)
    store.save("anna", entry.id, grown(transcript, "More?"))
    assert encoded == [1]


def test_a_save_without_a_change_writes_nothing(store):
    entry = store.create("anna", chat())
    assert written_rows(store, lambda: store.save("anna", entry.id, chat())) == 0
    assert store.entry("anna", entry.id).changed == entry.changed


def test_a_picture_that_got_another_name_is_noticed(store):
    before = talk("What?", pictures=[drawn(1, "a.png")])
    entry = store.create("anna", before)
    store.save("anna", entry.id, talk("What?", pictures=[drawn(1, "b.png")]))
    assert picture_names(store.load("anna", entry.id)) == [["b.png"]]


def test_what_another_process_saved_meanwhile_is_replaced_whole(store, folder):
    mine = talk("One?", "One.", "Two?", "Two.")
    entry = store.create("anna", mine)
    with ConversationStore(folder) as other:
        other.save("anna", entry.id, talk("Other?", "Other."))
    store.save("anna", entry.id, mine)  # whose rows this process believed to be there
    assert texts(store.load("anna", entry.id)) == ["One?", "One.", "Two?", "Two."]


def test_a_save_can_refuse_to_replace_what_another_tab_has_saved(store):
    entry = store.create("anna", talk("One?"))
    newer = store.save("anna", entry.id, talk("One?", "One."), unchanged_since=entry.changed)
    with pytest.raises(StoreError, match="changed elsewhere"):
        store.save("anna", entry.id, talk("Other?"), unchanged_since=entry.changed)
    assert texts(store.load("anna", entry.id)) == ["One?", "One."]
    store.save("anna", entry.id, talk("Other?"), unchanged_since=newer.changed)


# --- what cannot be saved -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turn",
    [
        Turn(Message("user", (Text("half a character: \ud800"),)), ROOT),
        Turn(Message("assistant", ()), ROOT, (generated(schema={"maximum": float("nan")}),)),
        Turn(Message("assistant", ()), ROOT, (generated(said_tokens=-1),)),
    ],
    ids=["half a character", "not a number", "a wrong count"],
)
def test_what_could_not_be_read_again_is_not_saved(store, turn):
    entry = store.create("anna", talk("One?", "One."))
    with pytest.raises(StoreError, match="cannot be saved: it holds text or numbers"):
        store.save("anna", entry.id, Transcript((turn,), 0))
    assert texts(store.load("anna", entry.id)) == ["One?", "One."]
    with pytest.raises(StoreError, match="cannot be saved"):
        store.create("anna", Transcript((turn,), 0))
    assert len(store.list("anna")) == 1


def test_a_damaged_conversation_is_told_and_the_others_are_well(store):
    entry, other = store.create("anna", chat()), store.create("anna", chat())
    db = store._database._db
    db.execute("UPDATE turns SET entry = '{}' WHERE conversation = 1 AND place = 1")
    with pytest.raises(StoreError, match="damaged"):
        store.load("anna", entry.id)
    assert store.load("anna", other.id) == chat()
    store.delete("anna", entry.id)


# --- many threads ---------------------------------------------------------------------------------


def test_many_threads_lose_nothing(store, folder):
    failed = []

    def write(name):
        try:
            entry = store.create(name)
            for count in range(1, 20):
                store.save(name, entry.id, talk(*(f"{name} {n}" for n in range(count))))
                store.list(name)
                store.search(name, "0")
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=write, args=(f"user {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for number in range(8):
        (entry,) = store.list(f"user {number}")
        found = texts(store.load(f"user {number}", entry.id))
        assert found == [f"user {number} {n}" for n in range(19)]
    assert is_intact(folder)


def test_one_conversation_saved_by_many_threads_is_one_of_theirs(store):
    entry = store.create("anna")
    saved = [talk(*[f"{n} said"] * (n + 1), pictures=[drawn(n)]) for n in range(6)]

    def write(transcript):
        for _ in range(10):
            store.save("anna", entry.id, transcript)

    threads = [threading.Thread(target=write, args=(transcript,)) for transcript in saved]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load("anna", entry.id) in saved


# --- times ----------------------------------------------------------------------------------------


def test_times_are_utc_and_a_clock_that_is_set_back_does_not_turn_them_round(store, monkeypatch):
    entry = store.create("anna", talk("One?"))
    assert abs(entry.created - datetime.now(UTC)) < timedelta(minutes=1)

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr(tables, "datetime", Yesterday)
    later = store.save("anna", entry.id, talk("One?", "One."))
    assert later.changed > entry.changed
    assert later.created == entry.created


def test_a_closed_store_says_so(folder):
    store = ConversationStore(folder)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.create("anna")


def test_an_unknown_id_is_told(store):
    for id in ("", "0" * 32, "'; DROP TABLE turns; --"):
        with pytest.raises(UnknownConversationError, match="no such conversation"):
            store.load("anna", id)
