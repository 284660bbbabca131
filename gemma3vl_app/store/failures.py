"""What a disk or a database says, put as an error for people."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import Timeout

from gemma3vl_app.errors import StoreError

DATA_VARIABLE = "GEMMA3VL_DATA"

_FULL = "the disk is full. Free some space and try again"
_REFUSED = (
    "the folder of conversations cannot be written. Check its permissions, or choose another with "
    f"{DATA_VARIABLE}"
)
_BUSY = "another program is writing there all the time. Close it, or try again"
_DAMAGED = (
    "their database is damaged. Start the program again: it puts the damaged one aside and begins "
    "a new one"
)
_TOO_LARGE = "a text in it is too large. Begin a new conversation"

_BY_SQLITE = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _REFUSED,
    sqlite3.SQLITE_PERM: _REFUSED,
    sqlite3.SQLITE_CANTOPEN: _REFUSED,
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_PROTOCOL: _BUSY,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_TOOBIG: _TOO_LARGE,
}
_BY_SYSTEM = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), _REFUSED),
}


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python's own: a text that is none
        return sqlite3.SQLITE_CORRUPT
    return code & 0xFF  # the rest are details


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn failures of disk and database into a `StoreError` that begins with `what`."""
    try:
        yield
    except Timeout as error:
        raise StoreError(f"{what}: {_BUSY}.") from error
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.ProgrammingError):  # a mistake of ours
            raise
        reason = _BY_SQLITE.get(code_of(error), _of_the_disk(str(error)))
        raise StoreError(f"{what}: {reason}.") from error
    except OSError as error:
        said = error.strerror or type(error).__name__
        reason = _BY_SYSTEM.get(error.errno or 0, _of_the_disk(said))
        raise StoreError(f"{what}: {reason}.") from error


def _of_the_disk(said: str) -> str:
    return f"the disk reports an error ({said}). What was saved before is kept; check the disk"
