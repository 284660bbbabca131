"""A disk that takes no more: the chat goes on in memory, says so, and is kept once it can be."""

import sqlite3

from gemma3vl_app.store import ConversationStore, database
from tests.faults.chat_server import OWNER, answer, chat_server, send
from tests.store.talks import is_intact, texts

LONG = ("and so on " * 300).strip()


def asked(client, id, text):
    sent = send(client, id, text)
    return sent, answer(client, str(sent["id"]))


def saved(folder, id):
    with ConversationStore(folder) as store:
        return texts(store.load(OWNER, id))


def test_on_a_full_disk_a_chat_goes_on_with_a_warning_and_is_kept_once_there_is_room(tmp_path):
    folder = tmp_path / "kept"
    with chat_server(folder) as server, server.client() as client:
        sent, _ = asked(client, None, "First")
        id = sent["id"]
        client.post("/disk", json={"bytes": 4096})
        for text in (f"Second {LONG}", f"Third {LONG}"):
            _, said = asked(client, id, text)
            assert said["is_error"] and "cannot be saved" in said["line"]
            assert said["texts"][-2:] == [text, text]
        client.post("/disk", json={"bytes": -1})
        _, said = asked(client, id, "Fourth")
        assert not said["is_error"]
        assert len(said["texts"]) == 8
    assert is_intact(folder)
    assert saved(folder, id) == said["texts"]


def test_while_another_program_holds_the_store_a_chat_goes_on_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    folder = tmp_path / "kept"
    with chat_server(folder) as server, server.client() as client:
        sent, _ = asked(client, None, "First")
        id = sent["id"]
        other = sqlite3.connect(folder / database.DATABASE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        _, said = asked(client, id, "Second")
        assert said["is_error"]
        assert said["texts"] == ["First", "First", "Second", "Second"]
        other.execute("ROLLBACK")
        other.close()
        _, said = asked(client, id, "Third")
        assert not said["is_error"]
    assert saved(folder, id) == said["texts"]
