"""The database file: opened, checked, brought to this version, put aside when it is damaged.

One connection, and a lock around it: SQLite has one writer at a time anyway, whoever has to wait
waits in order, and no second connection of this process can hold up a commit. Knows nothing of what
is in the tables.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from gemma3vl_app.errors import StoreError
from gemma3vl_app.store import schema
from gemma3vl_app.store.failures import code_of

BUSY_SECONDS = 10.0  # how long another process may keep us waiting
SYNCHRONOUS = "FULL"  # what was committed survives a power cut, in both journal modes used here
DATABASE = "conversations.db"
PICTURES = "pictures"
_SIDE_FILES = tuple(DATABASE + ending for ending in ("-journal", "-wal", "-shm"))
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_log = logging.getLogger(__name__)


def journal_mode(version: tuple[int, ...]) -> str:
    """Return the journal mode that is safe in this version of SQLite.

    Before 3.51.3 two connections could spoil a database in WAL mode (the "WAL-reset bug"), but in
    3.50.7 and 3.44.6, which got the correction too. TRUNCATE is the rollback journal that lasts
    through a power cut without a folder to be synced.
    """
    fixed = version >= (3, 51, 3) or any(first <= version < end for first, end in _CORRECTED)
    return "WAL" if fixed else "TRUNCATE"


_CORRECTED = (((3, 50, 7), (3, 51)), ((3, 44, 6), (3, 45)))


class Database:
    """An open database; `notice` says what people should know about how it was opened."""

    def __init__(self, folder: Path) -> None:
        """Open, make or mend it; raises `StoreError`, `sqlite3.Error` or `OSError`."""
        self._lock = threading.Lock()
        self.notice: str | None = None
        _make_private(folder)
        # Only one process at a time makes, migrates or puts aside.
        with FileLock(folder / ".lock", timeout=BUSY_SECONDS, mode=0o600):
            try:
                self._db: sqlite3.Connection | None = _opened(folder)
            except _DamagedError:
                aside = _put_aside(folder)
                self.notice = (
                    "The conversations saved before could not be read: their database is damaged. "
                    f"It was put aside as {aside!r}, beside the new, empty one."
                )
                _log.warning(self.notice)
                self._db = _opened(folder)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for several queries about the same moment."""
        with self._transaction("DEFERRED") as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for changes; all of them are on the disk afterwards, or none."""
        with self._transaction("IMMEDIATE") as db:
            if schema.version_of(db) != schema.version_here():
                raise StoreError(
                    "Another program has changed the form of the stored conversations meanwhile. "
                    "Start this one again."
                )
            yield db

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        with self._lock, _transaction(self._connection(), kind) as db:
            yield db

    def rewrite(self) -> bool:
        """Write the whole file anew, so that nothing deleted is left in it; whether that is so.

        `secure_delete` alone leaves some copies of what SQLite moved about inside the file.
        """
        with self._lock:
            db = self._connection()
            db.execute("VACUUM")
            blocked, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not blocked

    def close(self) -> None:
        """Close it; safe to call twice."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError("The store of conversations is closed. Open it again.")
        return self._db


@contextmanager
def _transaction(db: sqlite3.Connection, kind: str) -> Iterator[sqlite3.Connection]:
    db.execute(f"BEGIN {kind}")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite ends it itself after some failures
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


# --- opening --------------------------------------------------------------------------------------


class _DamagedError(Exception):
    """The file is no database, or one that contradicts itself."""


def _opened(folder: Path) -> sqlite3.Connection:
    path = folder / DATABASE
    _make_private_file(path)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _check(db)
        found = schema.version_of(db)
        _check_version(db, found)
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")  # no text in files elsewhere
        db.execute(f"PRAGMA journal_mode = {journal_mode(sqlite3.sqlite_version_info)}")
        db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        if found < schema.version_here():
            if found:
                _back_up(db, folder, found)
            with _transaction(db, "IMMEDIATE"):
                schema.migrate(db)
        db.execute("PRAGMA foreign_keys = ON")  # a migration may have to rebuild tables
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    try:
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if code_of(error) in _DAMAGED:
            raise _DamagedError(str(error)) from error
        raise
    if found != "ok":
        raise _DamagedError(found)


def _check_version(db: sqlite3.Connection, found: int) -> None:
    if found > schema.version_here():
        raise StoreError(
            f"The stored conversations are of version {found}; this program reads version "
            f"{schema.version_here()}. Update gemma3vl_app to open them."
        )
    if not found and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreError(
            f"{DATABASE!r} in the folder of conversations is a database of another program. "
            "Choose another folder."
        )


def _back_up(db: sqlite3.Connection, folder: Path, version: int) -> None:
    """Keep a copy of a database of an earlier version, whole or not at all."""
    aside = folder / ".backup"
    aside.unlink(missing_ok=True)  # of a process that was killed
    _make_private_file(aside)
    copy = sqlite3.connect(aside)
    try:
        db.backup(copy)  # synced, as every commit is
    finally:
        copy.close()
    os.replace(aside, folder / f"conversations-version-{version}.db")


def remove_backups(folder: Path) -> None:
    """Delete what `_back_up` kept."""
    for backup in folder.glob("conversations-version-*.db"):
        backup.unlink(missing_ok=True)


def _put_aside(folder: Path) -> str:
    """Move a damaged database and its pictures into a folder beside; returns that folder's name.

    The database goes last: a process that is killed here does it again. A journal must never be
    left for the new database, which would take it for its own.
    """
    now = datetime.now(UTC).strftime("damaged-%Y-%m-%dT%H-%M-%SZ")
    names = (now, *(f"{now}-{number}" for number in range(2, 100)))
    aside = next(folder / name for name in names if not (folder / name).exists())
    aside.mkdir(mode=0o700)
    for name in (PICTURES, *_SIDE_FILES, DATABASE):
        with suppress(FileNotFoundError):
            os.rename(folder / name, aside / name)
    return aside.name


# --- only this user may read them -----------------------------------------------------------------


def _make_private(folder: Path) -> None:
    """Make the folder for this user alone; one that holds other things too is left as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / DATABASE).exists() or not any(folder.iterdir()):
        _allow_only_the_owner(folder, 0o700)


def _make_private_file(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    _allow_only_the_owner(path, 0o600)


def _allow_only_the_owner(path: Path, mode: int) -> None:
    if path.stat().st_mode & 0o077:
        with suppress(PermissionError):  # another user's, who let us in
            path.chmod(mode)
