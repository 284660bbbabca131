"""`ConversationStore`: everybody's conversations in one folder, each seen by its owner only."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from gemma3vl_app.errors import StoreError
from gemma3vl_app.store import tables
from gemma3vl_app.store.database import PICTURES, Database, remove_backups
from gemma3vl_app.store.entries import Entry, Found
from gemma3vl_app.store.failures import DATA_VARIABLE, telling
from gemma3vl_app.store.known import KnownTurns
from gemma3vl_app.store.picture_files import PictureFiles
from gemma3vl_app.store.rows import files_by_pixels, files_of, from_rows, pictures_of, to_rows
from gemma3vl_app.store.words import (
    LONGEST_TITLE,
    find,
    plain,
    query_words,
    shortened,
    snippet,
    title_of,
)
from gemma3vl_app.transcript import Transcript

PAGE = 50  # entries of a list, where nothing else is asked for
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return the folder of this user's conversations; it need not exist yet.

    It lies in `$GEMMA3VL_DATA`, else in `~/.local/share/gemma3vl`.
    """
    chosen = os.environ.get(DATA_VARIABLE)
    root = Path(chosen).expanduser() if chosen else Path.home() / ".local" / "share" / "gemma3vl"
    return root / "conversations"


class ConversationStore:
    """Keep conversations in a folder; safe from many threads, and from several processes.

    ```python
    with ConversationStore(default_folder()) as store:
        entry = store.create("anna", chat.transcript)
        store.save("anna", entry.id, chat.transcript)
    ```

    `owner` is a user's name or a browser's secret, of which only the SHA-256 is stored. What a
    method changed is on the disk when it returns. `notice` is what people should be told about how
    the store was opened, None if all is well. All methods raise `StoreError` where the disk refuses
    (what was saved before is kept) and `UnknownConversationError` for an id that this owner does
    not have.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the store, making it where there is none; raises `StoreError`."""
        self._folder = Path(folder).expanduser()
        self._known = KnownTurns()
        with telling("The stored conversations cannot be opened"):
            self._database = Database(self._folder)
            try:
                self._pictures = PictureFiles(self._folder / PICTURES)
            except BaseException:
                self._database.close()
                raise
        self.notice = self._database.notice
        self._clean()
        self._sweep()

    def close(self) -> None:
        """Close the database; safe to call twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- one conversation ---

    def create(
        self, owner: str, transcript: Transcript | None = None, *, title: str = "", id: str = ""
    ) -> Entry:
        """Store a new conversation; without a `title`, its first words become the title.

        `id` is one that nobody has and nobody can guess; one is made where none is given.
        """
        transcript = transcript or Transcript()
        id = id or secrets.token_hex(16)
        with telling("The conversation cannot be saved"):
            pictures = pictures_of(transcript)
            files_of(pictures, {}, self._pictures.put)  # the slow part, while others may write
            with self._database.writing() as db:
                number = tables.insert(db, owner, id, shortened(plain(title), LONGEST_TITLE))
                rows = to_rows(transcript, files_of(pictures, {}, self._pictures.put))
                tables.write(db, number, rows, first=0, default_title=_default_title(transcript))
                entry = tables.entry_of(db, number)
        self._known.remember(id, entry.changed, transcript.turns)
        return entry

    def save(
        self,
        owner: str,
        id: str,
        transcript: Transcript,
        *,
        unchanged_since: datetime | None = None,
    ) -> Entry:
        """Store a conversation as it is now, writing only the turns that are new or different.

        `unchanged_since` is the `changed` of the entry that the caller knows: where somebody else
        (another tab) has saved it after that, nothing is written and `StoreError` is raised.
        """
        with telling("The conversation cannot be saved"):
            with self._database.reading() as db:
                known = tables.picture_rows(db, tables.number_of(db, owner, id))
            pictures = pictures_of(transcript)
            files_of(pictures, files_by_pixels(known.values()), self._pictures.put)
            with self._database.writing() as db:
                number = tables.number_of(db, owner, id)  # it may have been deleted meanwhile
                before = tables.entry_of(db, number).changed
                if unchanged_since not in (None, before):
                    raise StoreError(
                        "The conversation was changed elsewhere meanwhile, in another tab or "
                        "program. Load it again, or save this one as a new conversation."
                    )
                # No file that is there now goes away before this transaction ends.
                named = tables.picture_rows(db, number)
                there = {file: row for file, row in named.items() if self._pictures.has(file)}
                files = files_of(pictures, files_by_pixels(there.values()), self._pictures.put)
                first = 0
                if there == named:
                    first = self._known.count_same(id, before, transcript.turns)
                rows = to_rows(transcript, files, first)
                if tables.write(
                    db, number, rows, first=first, default_title=_default_title(transcript)
                ):
                    tables.touch(db, number, before)
                entry = tables.entry_of(db, number)
                has_lost_pictures = not named.keys() <= rows.pictures.keys()
        self._known.remember(id, entry.changed, transcript.turns)
        if has_lost_pictures:
            self._clean(rewrite=False)
        return entry

    def load(self, owner: str, id: str) -> Transcript:
        """Return a conversation as it was saved last.

        Where the file of a picture is lost or damaged, a text in its place says so.
        """
        with telling("The conversation cannot be read"):
            with self._database.reading() as db:
                number = tables.number_of(db, owner, id)
                rows = tables.rows_of(db, number)
                changed = tables.entry_of(db, number).changed
            data = {file: self._pictures.read(file) for file in rows.pictures}
        transcript = from_rows(rows, data)
        if None not in data.values():
            self._known.remember(id, changed, transcript.turns)
        return transcript

    def entry(self, owner: str, id: str) -> Entry:
        """Return what a list shows of a conversation."""
        with telling("The conversation cannot be read"), self._database.reading() as db:
            return tables.entry_of(db, tables.number_of(db, owner, id))

    def rename(self, owner: str, id: str, title: str) -> Entry:
        """Give a conversation a title; "" goes back to its first words."""
        given = shortened(plain(title), LONGEST_TITLE)
        with telling("The conversation cannot be renamed"), self._database.writing() as db:
            number = tables.number_of(db, owner, id)
            tables.rename(db, number, given)
            return tables.entry_of(db, number)

    def pin(self, owner: str, id: str, pinned: bool = True) -> Entry:
        """Keep a conversation at the top of the list, or no longer."""
        with telling("The conversation cannot be pinned"), self._database.writing() as db:
            number = tables.number_of(db, owner, id)
            tables.pin(db, number, pinned)
            return tables.entry_of(db, number)

    def delete(self, owner: str, id: str) -> None:
        """Delete a conversation: its rows, and the pictures that no other one has.

        Nothing of its text is left in the database file. Where cleaning the disk fails, it is done
        by the next deletion or start, and the log says so.
        """
        with telling("The conversation cannot be deleted"), self._database.writing() as db:
            tables.delete(db, tables.number_of(db, owner, id))
        self._known.forget(id)
        self._clean()

    def delete_all(self, owner: str) -> int:
        """Delete all conversations of an owner; returns how many there were."""
        with telling("The conversations cannot be deleted"), self._database.writing() as db:
            numbers = tables.numbers_of(db, owner)
            for number in numbers:
                tables.delete(db, number)
        self._clean()
        return len(numbers)

    # --- many ---

    def list(self, owner: str, *, offset: int = 0, limit: int = PAGE) -> tuple[Entry, ...]:
        """Return an owner's conversations, pinned ones first, then by their last change."""
        with telling("The conversations cannot be listed"), self._database.reading() as db:
            return tuple(tables.entries_of(db, owner, (), offset, limit).values())

    def search(
        self, owner: str, query: str, *, offset: int = 0, limit: int = PAGE
    ) -> tuple[Found, ...]:
        """Return the conversations that have every word of `query` in their title or messages.

        A word is found inside longer ones too, and whatever its case; nothing in it is a pattern.
        Ordered as `list` is. No words find nothing.
        """
        words = query_words(query)
        if not words:
            return ()
        with telling("The conversations cannot be searched"), self._database.reading() as db:
            entries = tables.entries_of(db, owner, words, offset, limit)
            texts = {number: tables.text_with(db, number, words) for number in entries}
        return tuple(_found(entry, texts[number], words) for number, entry in entries.items())

    # --- cleaning ---

    def _clean(self, *, rewrite: bool = True) -> None:
        """End what deletions have begun: remove files and, if `rewrite`, all traces of text."""
        with _logging_failures("Deleted conversations are not fully cleaned away yet"):
            with self._database.writing() as db:
                unwanted = tables.unwanted(db)
                files = unwanted - {tables.DATABASE_ITSELF}
                for file in files:
                    if not tables.is_named(db, file):  # and nobody can name it now
                        self._pictures.remove(file)
                tables.cleaned(db, files)
            if rewrite and tables.DATABASE_ITSELF in unwanted:
                remove_backups(self._folder)
                if self._database.rewrite():
                    with self._database.writing() as db:
                        tables.cleaned(db, [tables.DATABASE_ITSELF])

    def _sweep(self) -> None:
        """Delete pictures that a killed process had stored without coming to name them."""
        with (
            _logging_failures("Picture files that nothing names are still there"),
            self._database.writing() as db,
        ):
            self._pictures.sweep(tables.named_files(db))


@contextmanager
def _logging_failures(what: str) -> Iterator[None]:
    try:
        with telling(what):
            yield
    except StoreError as error:
        _log.warning("%s", error)


def _default_title(transcript: Transcript) -> str:
    return title_of(t.message.text for t in transcript.turns if t.message.role == "user")


def _found(entry: Entry, text: str | None, words: tuple[str, ...]) -> Found:
    shown = entry.title if text is None else text
    word = next((word for word in words if find(shown, word)), words[0])
    line, start, end = snippet(shown, word)
    return Found(entry=entry, snippet=line, start=start, end=end)
