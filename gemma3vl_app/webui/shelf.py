"""What the page's list of conversations is drawn from: `assets/shelf.js` draws it.

Also brings conversations out as files, and in.
"""

from __future__ import annotations

import itertools
import secrets
import shutil
from pathlib import Path
from typing import Any

from gemma3vl_app.conversation_file import read_chat, write_chat
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.export.kinds import export
from gemma3vl_app.store import Entry, Found
from gemma3vl_app.transcript import Transcript
from gemma3vl_app.webui.component import file_url
from gemma3vl_app.webui.library import Library, Opened
from gemma3vl_app.webui.words import Words

_numbers = itertools.count(1)  # of downloads: each is taken once


def as_values(
    library: Library, owner: str, shown: str, words: Words, *, query: str = "", download: str = ""
) -> dict[str, Any]:
    """Return what the list is drawn from; `download` is a file to be saved by the browser."""
    found: list[dict[str, Any]]
    if query.strip():
        found = [
            {**_entry(each.entry), "snippet": _snippet(each)}
            for each in library.search(owner, query)
        ]
    else:
        found = [_entry(each) for each in library.entries(owner)]
    values = {
        "words": words,
        "entries": found,
        "shown": shown,
        "is_kept": library.is_kept,
        "notice": library.notice,
    }
    if download:
        values["download"] = {
            "number": next(_numbers),
            "url": file_url(download),
            "name": Path(download).name,
            "fresh": True,
        }
    return values


def write_out(transcript: Transcript, kind: str, folder: Path) -> str:
    """Write a conversation to a file of `kind` ("zip", "html", "md", "ipynb"); returns its path.

    Kinds with pictures beside them come as a zip of both. Raises `ConversationError`.
    """
    place = folder / secrets.token_hex(16)
    place.mkdir(mode=0o700, parents=True)
    if kind == "zip":
        return str(write_chat(place / "conversation.chat.zip", transcript))
    if kind == "html":
        return str(export(transcript, place / "conversation.html").file)
    if kind in ("md", "ipynb"):
        return _zipped(transcript, kind, place)
    raise ConversationError(f"A conversation cannot be exported as {kind!r}.")


def bring_in(library: Library, owner: str, file: str) -> Opened:
    """Take over a conversation from a file that `write_out` wrote as "zip".

    Raises `ConversationError` for a damaged or foreign file.
    """
    return library.new(owner, read_chat(file))


def _zipped(transcript: Transcript, kind: str, place: Path) -> str:
    inner = place / "conversation"
    inner.mkdir()
    export(transcript, inner / f"conversation.{kind}")
    return shutil.make_archive(str(place / f"conversation-{kind}"), "zip", inner)


def _entry(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "title": entry.title, "pinned": entry.pinned}


def _snippet(found: Found) -> list[str]:
    text = found.snippet
    return [text[: found.start], text[found.start : found.end], text[found.end :]]
