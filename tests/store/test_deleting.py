"""What is deleted is gone from the folder, also where the deletion was cut short."""

import hashlib
import os
import random
import time

import pytest

from gemma3vl_app.store import ConversationStore, database, picture_files
from tests.conversation_file.chats import drawn
from tests.store.talks import ask, bytes_of, picture_names, talk, texts

CANARY = "canary bird"


def name_of(picture) -> str:
    return hashlib.sha256(picture.data).hexdigest()


@pytest.fixture(params=["TRUNCATE", "WAL"])
def any_folder(request, folder, monkeypatch):
    """A folder whose database has either kind of journal (WAL is safe with one connection)."""
    monkeypatch.setattr(database, "journal_mode", lambda _: request.param)
    return folder


def test_text_and_pictures_are_gone_from_the_folder(any_folder):
    with ConversationStore(any_folder) as store:
        kept = store.create("anna", talk("Stay", pictures=[drawn(1)]))
        said = talk(CANARY, f"A {CANARY}!", "And?", "x" * 50_000 + CANARY, pictures=[drawn(2)])
        entry = store.create("anna", said, title=f"The {CANARY}")
        store.rename("anna", entry.id, f"Another {CANARY}")
        assert CANARY.encode() in bytes_of(any_folder)
        store.delete("anna", entry.id)
        assert CANARY.encode() not in bytes_of(any_folder)
        assert drawn(2).data not in bytes_of(any_folder)
        assert picture_names(any_folder) == [name_of(drawn(1))]
        assert texts(store.load("anna", kept.id)) == ["Stay"]
        # Written anew: else some copies of what SQLite moved about would stay, now and then.
        assert ask(any_folder, "PRAGMA freelist_count") == [(0,)]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_left_wherever_the_database_had_moved_it(any_folder, seed):
    rng = random.Random(seed)
    alive: dict[str, list[str]] = {}
    with ConversationStore(any_folder) as store:
        for step in range(150):
            if rng.random() < 0.3 or not alive:
                alive[store.create("anna").id] = []
            id = rng.choice(list(alive))
            word = f"canary-{id}"
            if rng.random() < 0.8:
                kept = alive[id][: rng.randrange(len(alive[id]) + 1)]
                new = [f"{word}-{step} " * int(10 ** rng.uniform(0, 3)) for _ in range(3)]
                alive[id] = kept + new
                store.save("anna", id, talk(*alive[id]))
                store.rename("anna", id, word + "t" * rng.randrange(150))
            else:
                store.delete("anna", id)
                del alive[id]
                assert word.encode() not in bytes_of(any_folder)


def test_a_picture_stays_while_another_conversation_has_it(store, folder):
    mine = store.create("anna", talk("Mine", pictures=[drawn(1), drawn(2)]))
    other = store.create("bert", talk("Too", pictures=[drawn(2)]))
    assert len(picture_names(folder)) == 2
    store.delete("anna", mine.id)
    assert picture_names(folder) == [name_of(drawn(2))]
    assert store.load("bert", other.id).turns[0].message.pictures == (drawn(2),)
    store.delete("bert", other.id)
    assert picture_names(folder) == []


def test_a_picture_that_a_save_leaves_out_goes(store, folder):
    entry = store.create("anna", talk("Look", pictures=[drawn(1), drawn(2)]))
    store.save("anna", entry.id, talk("Look", pictures=[drawn(2)]))
    assert picture_names(folder) == [name_of(drawn(2))]
    assert store.entry("anna", entry.id).pictures == 1


def test_deleting_all_leaves_nothing(store, folder):
    for shade in range(3):
        store.create("anna", talk(CANARY, pictures=[drawn(shade)]))
    assert store.delete_all("anna") == 3
    assert CANARY.encode() not in bytes_of(folder)
    assert picture_names(folder) == []


def test_a_deletion_that_was_cut_short_is_ended_by_the_next_start(folder, monkeypatch):
    store = ConversationStore(folder)
    entry = store.create("anna", talk(CANARY, pictures=[drawn(1)]))
    monkeypatch.setattr(store, "_clean", lambda: None)  # killed before it came to that
    store.delete("anna", entry.id)
    store._database._db.close()
    assert picture_names(folder) == [name_of(drawn(1))]
    ConversationStore(folder).close()
    assert picture_names(folder) == []
    assert CANARY.encode() not in bytes_of(folder)
    assert ask(folder, "SELECT * FROM unwanted") == []


def test_a_disk_that_refuses_the_cleaning_is_asked_again(store, folder, monkeypatch, caplog):
    entry = store.create("anna", talk(CANARY, pictures=[drawn(1)]))

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(picture_files.PictureFiles, "remove", refuse)
        store.delete("anna", entry.id)
    assert "not fully cleaned" in caplog.text
    assert store.list("anna") == ()
    assert picture_names(folder) == [name_of(drawn(1))]
    store.delete("anna", store.create("anna").id)
    assert picture_names(folder) == []


# --- orphans --------------------------------------------------------------------------------------


def test_a_start_sweeps_old_files_that_nothing_names(folder):
    with ConversationStore(folder) as store:
        store.create("anna", talk("Look", pictures=[drawn(1)]))
    pictures = folder / database.PICTURES
    long_ago = time.time() - 2 * picture_files.ORPHAN_SECONDS
    for name in ("a" * 64, "b" * 64, f".{'c' * 64}.01234567", f".{'d' * 64}.01234567", "notes"):
        (pictures / name).write_bytes(b"x")
    for name in (name_of(drawn(1)), "a" * 64, f".{'c' * 64}.01234567", "notes"):
        os.utime(pictures / name, (long_ago, long_ago))
    ConversationStore(folder).close()
    assert set(picture_names(folder)) == {
        *(name_of(drawn(1)), "notes"),  # in use; not ours
        *("b" * 64, f".{'d' * 64}.01234567"),  # another process may be about to name them
    }


def test_an_old_orphan_that_comes_into_use_is_not_swept(folder, store):
    data = drawn(1).data
    orphan = folder / database.PICTURES / name_of(drawn(1))
    orphan.write_bytes(data)
    os.utime(orphan, (0, 0))
    store._pictures.put(data)  # the row is not there yet
    ConversationStore(folder).close()
    assert orphan.read_bytes() == data


def test_a_picture_deleted_by_another_process_in_between_is_written_again(store, folder):
    other = ConversationStore(folder)
    theirs = other.create("bert", talk("Look", pictures=[drawn(1)]))
    writing = store._database.writing

    def after_the_other_deleted():
        other.delete("bert", theirs.id)
        store._database.writing = writing
        return writing()

    store._database.writing = after_the_other_deleted
    entry = store.create("anna", talk("Look", pictures=[drawn(1)]))
    assert store.load("anna", entry.id).turns[0].message.pictures == (drawn(1),)
    other.close()
