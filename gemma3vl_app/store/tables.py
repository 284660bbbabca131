"""What is asked of the tables and written to them, inside a transaction of the caller's."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from gemma3vl_app.conversation_file.document import PictureFile, TurnEntry
from gemma3vl_app.errors import StoreError, UnknownConversationError
from gemma3vl_app.store.entries import Entry
from gemma3vl_app.store.rows import Rows, check_row, text_of, user_texts
from gemma3vl_app.store.words import fold, plain, title_of

DATABASE_ITSELF = ""  # in `unwanted`: the file is to be written anew
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_ENTRY = """
    SELECT number, id, title, created, changed, pinned,
        (SELECT count(*) FROM turns WHERE conversation = number),
        (SELECT count(*) FROM pictures WHERE conversation = number)
    FROM conversations
"""
_IN_ORDER = "ORDER BY pinned DESC, changed DESC, number DESC LIMIT ? OFFSET ?"
_HAS_WORD = """(
    instr(folded, ?) OR EXISTS
    (SELECT 1 FROM turns WHERE conversation = number AND instr(turns.folded, ?))
)"""


def hashed(owner: str) -> str:
    """Return what is stored of an owner."""
    if not owner:
        raise StoreError("A conversation needs an owner: a user's name or a browser's secret.")
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()


def stamp(moment: datetime | None = None) -> int:
    """Return a time, or now, in microseconds since 1970."""
    return ((moment or datetime.now(UTC)) - _EPOCH) // _MICROSECOND


# --- reading --------------------------------------------------------------------------------------


def number_of(db: sqlite3.Connection, owner: str, id: str) -> int:
    """Return the row of a conversation, which nobody but its owner finds."""
    found = db.execute(
        "SELECT number FROM conversations WHERE id = ? AND owner = ?", (id, hashed(owner))
    ).fetchone()
    if found is None:
        raise UnknownConversationError("There is no such conversation. Was it deleted?")
    return int(found[0])


def entry_of(db: sqlite3.Connection, number: int) -> Entry:
    """Return what a list shows of a conversation."""
    return _entry(db.execute(f"{_ENTRY} WHERE number = ?", (number,)).fetchone())


def entries_of(
    db: sqlite3.Connection, owner: str, words: Iterable[str], offset: int, limit: int
) -> dict[int, Entry]:
    """Return a page of an owner's conversations that have all folded `words`, by their row."""
    values: list[str | int] = [hashed(owner)]
    query = f"{_ENTRY} WHERE owner = ?"
    for word in words:
        query += f" AND {_HAS_WORD}"
        values += [word, word]
    found = db.execute(f"{query} {_IN_ORDER}", (*values, limit, offset)).fetchall()
    return {row[0]: _entry(row) for row in found}


def _entry(row: tuple[int, str, str, int, int, int, int, int]) -> Entry:
    _, id, title, created, changed, pinned, turns, pictures = row
    return Entry(
        id=id,
        title=title,
        created=_EPOCH + created * _MICROSECOND,
        changed=_EPOCH + changed * _MICROSECOND,
        pinned=bool(pinned),
        turns=turns,
        pictures=pictures,
    )


def text_with(db: sqlite3.Connection, number: int, words: Iterable[str]) -> str | None:
    """Return the first message that has one of the words, None where only the title has them."""
    for word in words:
        found = db.execute(
            "SELECT entry FROM turns WHERE conversation = ? AND instr(folded, ?)"
            " ORDER BY place LIMIT 1",
            (number, word),
        ).fetchone()
        if found:
            return plain(text_of(found[0]))
    return None


def rows_of(db: sqlite3.Connection, number: int) -> Rows:
    """Return everything that is stored of a conversation."""
    about = db.execute("SELECT about FROM conversations WHERE number = ?", (number,)).fetchone()[0]
    return Rows(about, tuple(_turn_rows(db, number)), picture_rows(db, number))


def _turn_rows(db: sqlite3.Connection, number: int) -> Iterator[str]:
    found = db.execute("SELECT entry FROM turns WHERE conversation = ? ORDER BY place", (number,))
    return (entry for (entry,) in found)


def picture_rows(db: sqlite3.Connection, number: int) -> dict[str, str]:
    """Return the rows of a conversation's pictures by the SHA-256 of their bytes."""
    found = db.execute("SELECT file, about FROM pictures WHERE conversation = ?", (number,))
    return dict(found.fetchall())


def named_files(db: sqlite3.Connection) -> set[str]:
    """Return all picture files that a conversation has."""
    return {file for (file,) in db.execute("SELECT DISTINCT file FROM pictures")}


def is_named(db: sqlite3.Connection, file: str) -> bool:
    """Whether a conversation has this picture file."""
    return bool(db.execute("SELECT 1 FROM pictures WHERE file = ? LIMIT 1", (file,)).fetchone())


# --- writing --------------------------------------------------------------------------------------


def insert(db: sqlite3.Connection, owner: str, id: str, given_title: str) -> int:
    """Add an empty conversation; returns its row."""
    now = stamp()
    number = db.execute(
        "INSERT INTO conversations"
        " (id, owner, given_title, title, folded, created, changed, about)"
        " VALUES (?, ?, ?, '', '', ?, ?, '')",
        (id, hashed(owner), given_title, now, now),
    ).lastrowid
    assert number is not None
    return number


def write(
    db: sqlite3.Connection, number: int, rows: Rows, *, first: int, default_title: str
) -> bool:
    """Make the stored rows those of `rows`, turns from `first` on; whether any was different."""
    before = db.total_changes
    db.execute(
        "UPDATE conversations SET about = ? WHERE number = ? AND about <> ?",
        (rows.about, number, rows.about),
    )
    _write_turns(db, number, rows.turns, first)
    _write_pictures(db, number, rows.pictures)
    given = db.execute("SELECT given_title FROM conversations WHERE number = ?", (number,))
    _set_title(db, number, given.fetchone()[0] or default_title)
    return db.total_changes > before


def _write_turns(db: sqlite3.Connection, number: int, turns: tuple[str, ...], first: int) -> None:
    found = db.execute(
        "SELECT place, entry FROM turns WHERE conversation = ? AND place >= ?", (number, first)
    )
    stored = dict(found.fetchall())
    for place, entry in enumerate(turns, start=first):
        if stored.pop(place, None) != entry:
            check_row(entry, TurnEntry)
            db.execute(
                "INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?)",
                (number, place, entry, fold(plain(text_of(entry)))),
            )
    for place in stored:  # the transcript has lost them
        db.execute("DELETE FROM turns WHERE conversation = ? AND place = ?", (number, place))
        want_gone(db, [DATABASE_ITSELF])


def _write_pictures(db: sqlite3.Connection, number: int, pictures: Mapping[str, str]) -> None:
    stored = picture_rows(db, number)
    for file, about in pictures.items():
        if stored.pop(file, None) != about:
            check_row(about, PictureFile)
            db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", (number, file, about))
    for file in stored:
        db.execute("DELETE FROM pictures WHERE conversation = ? AND file = ?", (number, file))
    want_gone(db, stored)


def touch(db: sqlite3.Connection, number: int, before: datetime) -> None:
    """Note that a conversation was changed after `before`, also where the clock was set back."""
    changed = max(stamp(), stamp(before) + 1)
    db.execute("UPDATE conversations SET changed = ? WHERE number = ?", (changed, number))


def rename(db: sqlite3.Connection, number: int, given: str) -> None:
    """Give a conversation a title, or its first words where `given` is ""."""
    db.execute("UPDATE conversations SET given_title = ? WHERE number = ?", (given, number))
    _set_title(db, number, given or title_of(user_texts(_turn_rows(db, number))))


def _set_title(db: sqlite3.Connection, number: int, title: str) -> None:
    db.execute(
        "UPDATE conversations SET title = ?, folded = ? WHERE number = ? AND title <> ?",
        (title, fold(title), number, title),
    )


def pin(db: sqlite3.Connection, number: int, pinned: bool) -> None:
    """Keep a conversation at the top, or no longer."""
    db.execute("UPDATE conversations SET pinned = ? WHERE number = ?", (pinned, number))


def delete(db: sqlite3.Connection, number: int) -> None:
    """Delete a conversation's rows, and note what is left to clean."""
    want_gone(db, (*picture_rows(db, number), DATABASE_ITSELF))
    db.execute("DELETE FROM conversations WHERE number = ?", (number,))


def numbers_of(db: sqlite3.Connection, owner: str) -> tuple[int, ...]:
    """Return the rows of all conversations of an owner."""
    found = db.execute("SELECT number FROM conversations WHERE owner = ?", (hashed(owner),))
    return tuple(number for (number,) in found)


# --- what a deletion has yet to do ----------------------------------------------------------------


def want_gone(db: sqlite3.Connection, files: Iterable[str]) -> None:
    """Note picture files, or `DATABASE_ITSELF`, to be cleaned away after this transaction."""
    db.executemany("INSERT OR IGNORE INTO unwanted VALUES (?)", [(file,) for file in files])


def unwanted(db: sqlite3.Connection) -> set[str]:
    """Return what was noted to be cleaned away."""
    return {file for (file,) in db.execute("SELECT file FROM unwanted")}


def cleaned(db: sqlite3.Connection, files: Iterable[str]) -> None:
    """Note that these are gone."""
    db.executemany("DELETE FROM unwanted WHERE file = ?", [(file,) for file in files])
