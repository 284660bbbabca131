"""A disk that refuses is told in plain words, and what was saved before stays."""

import errno
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gemma3vl_app.errors import StoreError
from gemma3vl_app.store import ConversationStore, database, picture_files
from tests.conversation_file.chats import drawn
from tests.store.talks import is_intact, picture_names, talk, texts

ROOT = Path(__file__).parents[2]
LONG = [f"{number} " * 5000 for number in range(20)]


@pytest.fixture
def entry(store):
    return store.create("anna", talk("Hello", "Good day", pictures=[drawn(1)]))


def refused(act) -> str:
    with pytest.raises(StoreError) as error:
        act()
    return str(error.value)


def is_as_before(store, entry):
    assert store.list("anna") == (entry,)
    assert texts(store.load("anna", entry.id)) == ["Hello", "Good day"]
    return True


def test_a_full_disk_is_told_and_saving_goes_on_when_there_is_room(store, folder, entry):
    db = store._database._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    for act in (
        lambda: store.save("anna", entry.id, talk("Hello", *LONG)),
        lambda: store.create("anna", talk(*LONG)),
    ):
        assert refused(act) == (
            "The conversation cannot be saved: the disk is full. Free some space and try again."
        )
        assert is_as_before(store, entry)
        assert is_intact(folder)
    db.execute("PRAGMA max_page_count = 1000000")
    store.save("anna", entry.id, talk("Hello", *LONG))
    assert texts(store.load("anna", entry.id)) == ["Hello", *LONG]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_a_picture_is_told(store, folder, entry, monkeypatch, number):
    def fail(*_):
        raise OSError(number, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gemma3vl_app.atomic_file.os.fsync", fail)
        said = talk("Hello", "Good day", pictures=[drawn(1), drawn(2)])
        assert "the disk is full" in refused(lambda: store.save("anna", entry.id, said))
    assert is_as_before(store, entry)
    assert len(picture_names(folder)) == 1


LIMITED = """
import resource, sys
from gemma3vl_app.errors import StoreError
from gemma3vl_app.store import ConversationStore
from tests.store.test_failures import LONG, drawn_large, talk

folder, id = sys.argv[1:]
with ConversationStore(folder) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))
    for transcript in (talk("Hello", *LONG), talk("Hello", pictures=[drawn_large()])):
        try:
            store.save("anna", id, transcript)
        except StoreError as error:
            print(error)
    print(store.entry("anna", id).turns)
"""


def drawn_large():
    import numpy as np

    from gemma3vl_app.pictures import Picture

    pixels = np.random.default_rng(1).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    return Picture.open(pixels)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
def test_a_disk_that_truly_takes_no_more_is_told(store, folder, entry):
    store.close()
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), entry.id],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    text, picture, turns = ended.stdout.splitlines()
    assert text.startswith("The conversation cannot be saved: the disk ")
    assert picture.startswith("The conversation cannot be saved: the disk is full.")
    assert turns == "2"
    assert is_intact(folder)
    with ConversationStore(folder) as again:
        assert is_as_before(again, entry)


def test_a_database_that_may_not_be_written_is_told(store, entry):
    store._database._db.execute("PRAGMA query_only = ON")
    acts = [
        lambda: store.save("anna", entry.id, talk("Other")),
        lambda: store.rename("anna", entry.id, "Other"),
        lambda: store.pin("anna", entry.id),
        lambda: store.delete("anna", entry.id),
        lambda: store.delete_all("anna"),
    ]
    for act in acts:
        assert "Check its permissions, or choose another with GEMMA3VL_DATA" in refused(act)
    assert is_as_before(store, entry)


def test_pictures_that_may_not_be_written_are_told(store, entry, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(picture_files, "atomic_file", refuse)
    said = talk("Hello", pictures=[drawn(3)])
    assert "Check its permissions" in refused(lambda: store.save("anna", entry.id, said))
    assert is_as_before(store, entry)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        said = refused(lambda folder=folder: ConversationStore(folder))
        assert said.startswith("The stored conversations cannot be opened: ")
        assert str(tmp_path) not in said


def test_a_database_locked_for_too_long_is_told(folder, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with ConversationStore(folder) as store:
        entry = store.create("anna", talk("Hello", "Good day"))
        other = sqlite3.connect(folder / database.DATABASE, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        said = refused(lambda: store.save("anna", entry.id, talk("Other")))
        assert said.endswith(
            "another program is writing there all the time. Close it, or try again."
        )
        assert "another program" in refused(lambda: store.list("anna"))
        assert "another program" in refused(lambda: ConversationStore(folder))
        other.execute("ROLLBACK")
        other.close()
        assert is_as_before(store, entry)


def test_a_reader_in_the_way_of_a_commit_leaves_the_old_state(folder, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with ConversationStore(folder) as store:
        entry = store.create("anna", talk("Hello", "Good day"))
        other = sqlite3.connect(folder / database.DATABASE, isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT * FROM turns").fetchall()
        assert "another program" in refused(lambda: store.save("anna", entry.id, talk("Other")))
        assert is_as_before(store, entry)
        other.execute("COMMIT")
        other.close()
        store.save("anna", entry.id, talk("Other"))


def test_an_interrupted_save_leaves_the_old_state(store, entry, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gemma3vl_app.store.tables._write_pictures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.save("anna", entry.id, talk("Other"))
    assert is_as_before(store, entry)
    store.save("anna", entry.id, talk("Other"))
