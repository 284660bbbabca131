"""The tables, and how those of an earlier version become those of this one.

A step of `MIGRATIONS` is never changed once it was published; a new form of the tables is a new
step at the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

_VERSION_1 = (
    """
    CREATE TABLE conversations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,              -- SHA-256 of a user's name or a browser's secret
        given_title TEXT NOT NULL,        -- by a person; "" where none was given
        title TEXT NOT NULL,
        folded TEXT NOT NULL,             -- the title as it is searched
        -- microseconds since 1970, UTC, up to the last that a datetime holds
        created INTEGER NOT NULL CHECK (created BETWEEN 0 AND 253402300799999999),
        changed INTEGER NOT NULL CHECK (changed BETWEEN 0 AND 253402300799999999),
        pinned INTEGER NOT NULL DEFAULT 0,
        about TEXT NOT NULL               -- conversation.json without turns and pictures
    )
    """,
    "CREATE INDEX shown ON conversations (owner, pinned DESC, changed DESC, number DESC)",
    """
    CREATE TABLE turns (
        conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
        place INTEGER NOT NULL,           -- in `turns` of conversation.json
        entry TEXT NOT NULL,              -- its element there
        folded TEXT NOT NULL,             -- its text as it is searched
        PRIMARY KEY (conversation, place)
    )
    """,
    """
    CREATE TABLE pictures (
        conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
        file TEXT NOT NULL,               -- SHA-256 of its bytes, and its name in the folder
        about TEXT NOT NULL,              -- its element in `pictures` of conversation.json
        PRIMARY KEY (conversation, file)
    )
    """,
    "CREATE INDEX picture_uses ON pictures (file)",
    # What a deletion has yet to do, so that one that is killed is ended by the next start:
    # a picture's file to delete, or "" for the database to be written anew.
    "CREATE TABLE unwanted (file TEXT PRIMARY KEY)",
)


def _create(db: sqlite3.Connection) -> None:
    for statement in _VERSION_1:
        db.execute(statement)


# Step n makes version n + 1 of version n, inside a transaction; version 0 is an empty file.
MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create,)


def version_here() -> int:
    """Return the version of the tables that this program reads and writes."""
    return len(MIGRATIONS)


def version_of(db: sqlite3.Connection) -> int:
    """Return the version of a database's tables, 0 for an empty one."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables to this version, inside the caller's transaction."""
    for step in MIGRATIONS[version_of(db) :]:
        step(db)
    db.execute(f"PRAGMA user_version = {version_here()}")
