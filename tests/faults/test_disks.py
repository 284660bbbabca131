"""A disk that takes no more: the chat goes on in memory, says so, and is kept once it can be."""

import errno
import sqlite3
import subprocess
from contextlib import contextmanager

import pytest

from gemma3vl_app.store import ConversationStore, database
from tests.faults.chat_server import OWNER, answer, chat_server, send
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within
from tests.store.talks import is_intact, texts

LONG = ("and so on " * 300).strip()


def asked(client, id, text):
    sent = send(client, id, text)
    return sent, answer(client, str(sent["id"]))


def asked_by_a_program(client):
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Still there?"}]}
    return client.post("/v1/chat/completions", json=body)


def saved(folder, id):
    with ConversationStore(folder) as store:
        return texts(store.load(OWNER, id))


@contextmanager
def small_disk(folder):
    """A file system of 2 MiB at `folder`; unmounted at the end, whoever still has files open."""
    folder.mkdir()
    made = mount("-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", folder)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*options):
    try:
        return subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")


def fill(file):
    """Write until the disk takes no more."""
    with pytest.raises(OSError) as full, file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 16))
    assert full.value.errno == errno.ENOSPC


def assert_answered_with_a_warning(client, id, warning):
    """Ask twice where nothing can be saved: both are answered, and a line says what is wrong."""
    for text in (f"Second {LONG}", f"Third {LONG}"):
        _, said = asked(client, id, text)
        assert said["is_error"] and warning in said["line"]
        assert said["texts"][-2:] == [text, text]


def test_on_a_file_system_without_room_a_chat_goes_on_and_is_kept_once_there_is_some(tmp_path):
    folder = tmp_path / "kept"
    with small_disk(folder):
        with chat_server(folder) as server, server.client() as client:
            sent, _ = asked(client, None, "First")
            id = sent["id"]
            fill(folder / "filler")
            assert_answered_with_a_warning(client, id, "the disk is full")
            (folder / "filler").unlink()
            _, said = asked(client, id, "Fourth")
            assert not said["is_error"]
            next_answer_within(NEXT_WITHIN_SEC, lambda: asked_by_a_program(client))
            assert len(said["texts"]) == 8
        assert is_intact(folder)
        assert saved(folder, id) == said["texts"]


def test_on_a_read_only_file_system_the_page_works_and_what_was_kept_stays(tmp_path):
    folder = tmp_path / "kept"
    with small_disk(folder):
        with chat_server(folder) as server, server.client() as client:
            sent, before = asked(client, None, "First")
        assert not mount("-o", "remount,ro", folder).returncode
        with pytest.raises(OSError) as refused:
            (folder / "file").touch()
        assert refused.value.errno == errno.EROFS
        with chat_server(folder) as server, server.client() as client:
            other, said = asked(client, None, "Second")
            assert said["texts"] == ["Second", "Second"] and not said["is_error"]
            _, said = asked(client, other["id"], "Third")
            assert said["texts"][2:] == ["Third", "Third"]
            next_answer_within(NEXT_WITHIN_SEC, lambda: asked_by_a_program(client))
        assert not mount("-o", "remount,rw", folder).returncode
        assert is_intact(folder)
        assert saved(folder, sent["id"]) == before["texts"]


def test_on_a_full_disk_a_chat_goes_on_with_a_warning_and_is_kept_once_there_is_room(tmp_path):
    folder = tmp_path / "kept"
    with chat_server(folder) as server, server.client() as client:
        sent, _ = asked(client, None, "First")
        id = sent["id"]
        client.post("/disk", json={"bytes": 4096})
        assert_answered_with_a_warning(client, id, "cannot be saved")
        client.post("/disk", json={"bytes": -1})
        _, said = asked(client, id, "Fourth")
        assert not said["is_error"]
        next_answer_within(NEXT_WITHIN_SEC, lambda: asked_by_a_program(client))
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
        next_answer_within(NEXT_WITHIN_SEC, lambda: asked_by_a_program(client))
    assert saved(folder, id) == said["texts"]
