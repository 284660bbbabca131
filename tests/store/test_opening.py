"""Opening: private, of the right version, and never silently on a damaged database."""

import os
import sqlite3
import stat
import threading
import time

import pytest

from gemma3vl_app.errors import StoreError
from gemma3vl_app.store import ConversationStore, database, default_folder, schema
from tests.conversation_file.chats import chat, drawn
from tests.store.talks import ask, bytes_of, is_intact, picture_names, talk, texts

IS_POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")


def execute(folder, *statements):
    db = sqlite3.connect(folder / database.DATABASE, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.fixture
def used(folder):
    """The folder of a store with a conversation of anna's."""
    with ConversationStore(folder) as store:
        store.create("anna", talk("Hello", "Good day", pictures=[drawn(1)]))
    return folder


# --- where, and who may read it -------------------------------------------------------------------


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMMA3VL_DATA", str(tmp_path))
    assert default_folder() == tmp_path / "conversations"
    monkeypatch.delenv("GEMMA3VL_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".local" / "share" / "gemma3vl" / "conversations"


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@IS_POSIX
@pytest.mark.parametrize("mode", ["TRUNCATE", "WAL"])
def test_only_the_user_can_read_it(folder, monkeypatch, mode):
    monkeypatch.setattr(database, "journal_mode", lambda _: mode)
    before = os.umask(0)
    try:
        with ConversationStore(folder) as store:
            store.create("anna", chat())
            assert modes(folder) == {0o600}
            assert {stat.S_IMODE(p.stat().st_mode) for p in (folder, folder / "pictures")} == {
                0o700
            }
    finally:
        os.umask(before)


@IS_POSIX
def test_a_store_that_others_could_read_is_made_private(used):
    used.chmod(0o755)
    (used / database.DATABASE).chmod(0o644)
    ConversationStore(used).close()
    assert stat.S_IMODE(used.stat().st_mode) == 0o700
    assert modes(used) == {0o600}


@IS_POSIX
def test_a_folder_that_holds_other_things_keeps_its_permissions(folder):
    folder.mkdir(mode=0o755)
    (folder / "letter.txt").write_text("Dear")
    ConversationStore(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / database.DATABASE).stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / database.PICTURES).stat().st_mode) == 0o700


# --- how SQLite is used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "TRUNCATE"),
        ((3, 44, 5), "TRUNCATE"),
        ((3, 44, 6), "WAL"),
        ((3, 44, 9), "WAL"),
        ((3, 45, 0), "TRUNCATE"),
        ((3, 50, 6), "TRUNCATE"),
        ((3, 50, 7), "WAL"),
        ((3, 51, 0), "TRUNCATE"),
        ((3, 51, 2), "TRUNCATE"),
        ((3, 51, 3), "WAL"),
        ((3, 52, 0), "WAL"),
        ((4, 0, 0), "WAL"),
    ],
)
def test_a_write_ahead_log_is_used_only_where_it_is_safe(version, mode):
    assert database.journal_mode(version) == mode


def test_sqlite_is_told_to_sync_each_commit_and_to_overwrite_what_is_deleted(tmp_path):
    with ConversationStore(tmp_path / "conversations") as store:
        db = store._database._db
        found = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
        wanted = database.journal_mode(sqlite3.sqlite_version_info).lower()
        assert db.execute("PRAGMA journal_mode").fetchone() == (wanted,)
    assert found == {
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": 10_000,
    }


def test_a_database_goes_from_one_journal_to_the_other(used, monkeypatch):
    for mode in ("WAL", "TRUNCATE"):
        monkeypatch.setattr(database, "journal_mode", lambda _, mode=mode: mode)
        with ConversationStore(used) as store:
            assert store._database._db.execute("PRAGMA journal_mode").fetchone() == (mode.lower(),)
            assert len(store.list("anna")) == 1


def test_a_write_ahead_log_that_another_program_uses_is_not_joined_where_it_is_unsafe(
    used, monkeypatch
):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(database, "journal_mode", lambda _: "WAL")
    with ConversationStore(used) as newer:
        newer.list("anna")
        monkeypatch.setattr(database, "journal_mode", lambda _: "TRUNCATE")
        with pytest.raises(StoreError, match="another program"):
            ConversationStore(used)
        newer.create("anna")


# --- a later version ------------------------------------------------------------------------------


def test_a_database_of_a_later_version_is_refused_and_left_alone(used):
    execute(used, "PRAGMA user_version = 7", "DROP TABLE turns")
    before = bytes_of(used)
    with pytest.raises(StoreError, match=r"version 7; this program reads version 1\. Update"):
        ConversationStore(used)
    assert bytes_of(used) == before


def test_a_database_of_another_program_is_refused_and_left_alone(folder):
    folder.mkdir()
    execute(folder, "CREATE TABLE songs (title)")
    before = bytes_of(folder)
    with pytest.raises(StoreError, match="of another program"):
        ConversationStore(folder)
    assert bytes_of(folder) == before


# --- an earlier version ---------------------------------------------------------------------------


def add_a_column(db):
    db.execute("ALTER TABLE conversations ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'")


def fail_half_way(db):
    add_a_column(db)
    db.execute("DELETE FROM turns")
    db.execute("INSERT INTO nowhere VALUES (1)")


def test_an_earlier_version_is_brought_to_this_one_after_a_copy(used, monkeypatch):
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_a_column))
    with ConversationStore(used) as store:
        (entry,) = store.list("anna")
        assert texts(store.load("anna", entry.id)) == ["Hello", "Good day"]
        assert store.notice is None
    assert ask(used, "PRAGMA user_version") == [(2,)]
    assert ask(used, "SELECT colour FROM conversations") == [("blue",)]
    copy = sqlite3.connect(used / "conversations-version-1.db")
    assert copy.execute("PRAGMA user_version").fetchall() == [(1,)]
    assert copy.execute("SELECT count(*) FROM turns").fetchall() == [(2,)]
    assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    copy.close()
    assert modes(used) == {0o600}


def test_a_migration_that_fails_leaves_everything_as_it_was(used, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, fail_half_way))
        with pytest.raises(StoreError, match="cannot be opened"):
            ConversationStore(used)
    with ConversationStore(used) as store:
        (entry,) = store.list("anna")
        assert texts(store.load("anna", entry.id)) == ["Hello", "Good day"]


def test_a_version_with_several_steps_behind_takes_them_in_order(used, monkeypatch):
    steps = []
    later = [lambda db, n=n: steps.append(n) for n in (2, 3, 4)]
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *later))
    execute(used, "PRAGMA user_version = 2")
    ConversationStore(used).close()
    assert steps == [3, 4]
    assert ask(used, "PRAGMA user_version") == [(4,)]


def test_a_program_that_was_overtaken_by_a_migration_writes_no_more(used, monkeypatch):
    with ConversationStore(used) as old:
        (entry,) = old.list("anna")
        execute(used, "PRAGMA user_version = 2")
        with pytest.raises(StoreError, match="Start this one again"):
            old.save("anna", entry.id, talk("Something else"))
        execute(used, "PRAGMA user_version = 1")
        assert texts(old.load("anna", entry.id)) == ["Hello", "Good day"]


def test_a_deletion_takes_the_copies_of_earlier_versions_along(used, monkeypatch):
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_a_column))
    with ConversationStore(used) as store:
        store.delete("anna", store.list("anna")[0].id)
    assert b"Good day" not in bytes_of(used)


# --- damage ---------------------------------------------------------------------------------------


def no_database(path):
    path.write_bytes(b"This is no database. " * 1000)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5000])


def overwritten(path):
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 64] = b"\xff" * 64
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [no_database, cut_off, overwritten])
def test_a_damaged_database_is_put_aside_whole_and_a_new_one_begun(used, damage, caplog):
    damage(used / database.DATABASE)
    damaged, pictures = (used / database.DATABASE).read_bytes(), picture_names(used)
    year = time.strftime("damaged-%Y-", time.gmtime())
    with ConversationStore(used) as store:
        (aside,) = [path for path in used.iterdir() if path.name.startswith(year)]
        assert aside.name in store.notice and "damaged" in store.notice
        assert store.notice in caplog.text
        assert str(used) not in store.notice
        assert (aside / database.DATABASE).read_bytes() == damaged
        assert picture_names(aside) == pictures  # of no conversation now, and yet not swept
        assert store.list("anna") == ()
        entry = store.create("anna", talk("A new one", pictures=[drawn(1)]))
    with ConversationStore(used) as store:
        assert store.notice is None
        assert texts(store.load("anna", entry.id)) == ["A new one"]
    assert is_intact(used)


def test_no_journal_of_the_damaged_database_stays_with_the_new_one(used):
    for ending in ("-journal", "-wal", "-shm"):
        (used / f"{database.DATABASE}{ending}").write_bytes(b"of the old one")
    aside = used / database._put_aside(used)
    assert {path.name for path in used.iterdir()} == {".lock", aside.name}
    assert len(list(aside.iterdir())) == 5


def test_damaged_twice_in_a_second_nothing_is_overwritten(used):
    for _ in range(2):
        no_database(used / database.DATABASE)
        ConversationStore(used).close()
    assert sum(path.name.startswith("damaged-") for path in used.iterdir()) == 2


def test_no_flipped_byte_goes_unnoticed_or_ends_in_a_traceback(used):
    whole = (used / database.DATABASE).read_bytes()
    for place in range(0, len(whole), 701):
        (used / database.DATABASE).write_bytes(
            whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        )
        try:
            with ConversationStore(used) as store:
                for entry in store.list("anna"):
                    store.load("anna", entry.id)
                store.search("anna", "hello")
        except StoreError as error:
            assert str(used) not in str(error)


def test_a_database_that_is_damaged_while_it_is_open_is_told(used):
    with ConversationStore(used) as store:
        no_database(used / database.DATABASE)
        with pytest.raises(StoreError, match="damaged"):
            store.list("anna")


# --- several at once ------------------------------------------------------------------------------


def test_stores_that_are_opened_at_the_same_time_make_one_database(folder):
    stores, failed = [], []
    start = threading.Barrier(6)

    def open_one():
        start.wait()
        try:
            stores.append(ConversationStore(folder))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=open_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for number, store in enumerate(stores):
        store.create("anna", talk(str(number)))
    for store in stores:
        assert len(store.list("anna")) == 6
        store.close()


def test_a_damaged_database_opened_twice_at_the_same_time_is_put_aside_once(used, monkeypatch):
    no_database(used / database.DATABASE)
    stores, put_aside = [], database._put_aside

    def put_aside_slowly(folder):
        time.sleep(0.2)
        return put_aside(folder)

    monkeypatch.setattr(database, "_put_aside", put_aside_slowly)
    threads = [
        threading.Thread(target=lambda: stores.append(ConversationStore(used))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert sum(store.notice is not None for store in stores) == 1
    for store in stores:
        store.close()
