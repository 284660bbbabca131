"""A transcript as rows, and back: the parts of conversation.json, each in a row of its own.

`about` is the document without its turns and pictures, which are a row each. So a turn that is
added changes its own row only, and there is one form of a saved chat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from gemma3vl_app.conversation_file.document import (
    Document,
    PictureFile,
    PicturePart,
    TextPart,
    TurnEntry,
    to_document,
    to_transcript,
)
from gemma3vl_app.conversation_file.files import checked_json
from gemma3vl_app.errors import ConversationError, StoreError
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import Transcript

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Rows:
    """A transcript's rows as JSON, or its last turns only; `pictures` by their bytes' SHA-256."""

    about: str
    turns: tuple[str, ...]
    pictures: Mapping[str, str]


def to_rows(transcript: Transcript, files: Mapping[Picture, str], first: int = 0) -> Rows:
    """Return the rows, turns from `first` on; `files` are the SHA-256 of the pictures' bytes.

    Raises `StoreError` for numbers and text that JSON cannot hold.
    """
    try:
        document = to_document(transcript, files, saved="", software={}, first=first)
        about = document.model_copy(update={"turns": [], "pictures": []})
        return Rows(
            about=check_row(_json(about), Document),
            turns=tuple(map(_json, document.turns)),
            pictures={each.file: _json(each) for each in document.pictures},
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise _unfit() from error


def check_row(row: str, kind: type[Model]) -> str:
    """Return the row if it can be read again, else raise `StoreError`."""
    try:
        kind.model_validate(checked_json(row.encode()))
    except (ValueError, RecursionError) as error:
        raise _unfit() from error
    return row


def _unfit() -> StoreError:
    return StoreError(
        "The conversation cannot be saved: it holds text or numbers that cannot be written down. "
        "What was saved before is kept."
    )


def _json(model: BaseModel) -> str:
    return json.dumps(
        model.model_dump(), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def text_of(turn: str) -> str:
    """Return the text of a turn's message, from its row."""
    return _text(from_json(turn))


def user_texts(turns: Iterable[str]) -> Iterable[str]:
    """Return the texts of the user's messages, from the rows of all turns."""
    return (_text(turn) for turn in map(from_json, turns) if turn["role"] == "user")


def _text(turn: dict[str, Any]) -> str:
    return "".join(part["text"] for part in turn["parts"] if part["type"] == "text")


def from_rows(rows: Rows, data: Mapping[str, bytes | None]) -> Transcript:
    """Return the transcript; `data` are the pictures' bytes by their SHA-256, None if lost.

    A lost picture is named by a text in its place. Raises `StoreError` where the rows do not fit
    together.
    """
    try:
        document = Document.model_validate(from_json(rows.about))
        turns = [TurnEntry.model_validate(from_json(turn)) for turn in rows.turns]
        said = [PictureFile.model_validate(from_json(each)) for each in rows.pictures.values()]
        pictures = {each.file: found for each in said if (found := _picture(each, data))}
        kept = [_without_lost(turn, pictures) for turn in turns]
        return to_transcript(document.model_copy(update={"turns": kept}), pictures)
    except (ValueError, LookupError, RecursionError, ConversationError) as error:
        raise StoreError(
            "The conversation is damaged and cannot be opened. The others are not concerned; "
            "delete this one when you do not need it."
        ) from error


def _picture(said: PictureFile, data: Mapping[str, bytes | None]) -> Picture | None:
    """Return a stored picture; its bytes are those of a checked one, so nothing is decoded."""
    found = data[said.file]
    if found is None:
        return None
    return Picture(found, said.pixels_sha256, "picture", width=said.width, height=said.height)


def _without_lost(turn: TurnEntry, pictures: Mapping[str, Picture]) -> TurnEntry:
    parts = [
        TextPart(type="text", text=f"[The picture '{part.name}' is lost.]\n")
        if isinstance(part, PicturePart) and part.file not in pictures
        else part
        for part in turn.parts
    ]
    return turn.model_copy(update={"parts": parts})


def pictures_of(transcript: Transcript) -> tuple[Picture, ...]:
    """Return the pictures of all turns."""
    return tuple(each for turn in transcript.turns for each in turn.message.pictures)


def files_of(
    pictures: Iterable[Picture], known: Mapping[str, str], put: Callable[[bytes], str]
) -> dict[Picture, str]:
    """Return the SHA-256 of the pictures' bytes; equal pixels share their first file.

    `known` are files that this conversation has, by pixels; `put` stores the bytes of another.
    """
    by_pixels = dict(known)
    files: dict[Picture, str] = {}
    for picture in pictures:
        if picture.sha256 not in by_pixels:
            by_pixels[picture.sha256] = put(picture.data)
        files[picture] = by_pixels[picture.sha256]
    return files


def files_by_pixels(pictures: Iterable[str]) -> dict[str, str]:
    """Return the files of picture rows by the SHA-256 of their pixels."""
    found: list[dict[str, Any]] = [from_json(row) for row in pictures]
    return {row["pixels_sha256"]: row["file"] for row in found}
