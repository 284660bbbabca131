"""Reading and writing a conversation file: the document and the archive put together."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from gemma3vl_app import __version__
from gemma3vl_app.atomic_file import atomic_file
from gemma3vl_app.conversation_file.archive import Archive, write_archive
from gemma3vl_app.conversation_file.document import (
    FORMAT,
    VERSION,
    Document,
    picture_files,
    to_document,
    to_transcript,
)
from gemma3vl_app.errors import ConversationError, PictureError
from gemma3vl_app.pictures import DEFAULT_LIMITS as USUAL
from gemma3vl_app.pictures import Picture, PictureLimits, open_without_waiting
from gemma3vl_app.transcript import Transcript

SUFFIX = ".chat.zip"  # by custom; any name will do
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")  # those that decide an answer's bits
_PILLOW_PIXELS = 89_478_485  # the most that PictureLimits allows
MOST_KEYS = 64  # of one object; the largest of the format has 14
MAX_PIXELS = 1 << 33  # of all pictures together: a few minutes of decoding


@dataclass(frozen=True, kw_only=True)
class SavedChat:
    """A conversation file's content: the chat, when it was saved, and by which software.

    `changed_pictures` are names of pictures whose pixels are not those that were recorded: another
    version of the decoder reads them a little differently.
    """

    transcript: Transcript
    saved: str
    software: Mapping[str, str]
    changed_pictures: tuple[str, ...] = ()


def write_chat(path: str | Path, transcript: Transcript, *, overwrite: bool = True) -> Path:
    """Write a chat to `path`, whole or not at all; returns the path.

    Raises `ConversationError` where it cannot be written, and where it exists and `overwrite` is
    false.
    """
    target = Path(path).expanduser()
    files, data = _stored_pictures(transcript)
    try:
        document = to_document(transcript, files, saved=_now(), software=software_here())
        text = json.dumps(
            document.model_dump(mode="json"), ensure_ascii=False, allow_nan=False
        ).encode()
        Document.model_validate(checked_json(text))  # as it will be read
    except (ValidationError, ValueError) as error:  # half characters, infinite numbers
        raise ConversationError(
            "The chat cannot be saved: it holds text or numbers that its file cannot hold."
        ) from error
    try:
        with atomic_file(target, overwrite=overwrite) as file:
            write_archive(file, text, data)
    except FileExistsError as error:
        raise ConversationError(
            f"{target.name!r} exists already. Choose another name, or have it replaced with "
            "overwrite=True."
        ) from error
    except OSError as error:
        raise ConversationError(
            f"The chat cannot be written to {target.name!r} ({error.strerror}). "
            "Choose another folder, or free some space."
        ) from error
    return target


def _stored_pictures(transcript: Transcript) -> tuple[dict[Picture, str], dict[str, bytes]]:
    """Return the SHA-256 of each picture's bytes, and the bytes by it; equal pixels only once."""
    files: dict[Picture, str] = {}
    data: dict[str, bytes] = {}
    by_pixels: dict[str, str] = {}
    pixels = 0
    for picture in (each for turn in transcript.turns for each in turn.message.pictures):
        if picture.sha256 not in by_pixels:
            digest = hashlib.sha256(picture.data).hexdigest()
            by_pixels[picture.sha256], data[digest] = digest, picture.data
            pixels += picture.width * picture.height
        files[picture] = by_pixels[picture.sha256]
    if pixels > MAX_PIXELS:
        raise ConversationError(
            f"The chat's pictures have {pixels / 1e9:.1f} billion pixels; a file holds "
            f"{MAX_PIXELS / 1e9:.1f}. Start a new chat for the rest."
        )
    return files, data


def read_chat(path: str | Path) -> Transcript:
    """Return the chat of a conversation file; raises `ConversationError` for anything else."""
    return open_saved(path).transcript


def open_saved(path: str | Path) -> SavedChat:
    """Return a conversation file's content, every picture checked.

    Raises `ConversationError` for a file that is missing, damaged, hostile, newer or no
    conversation; nothing is ever unpacked onto the disk.
    """
    source = Path(path).expanduser()
    try:
        with open(source, "rb", opener=open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConversationError(f"{source.name!r} is no file. Give a conversation file.")
            archive = Archive(file, source.name)
            document = _parse(archive)
            pictures, changed = _pictures(archive, document)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or "not a file's name"
        raise ConversationError(
            f"{source.name!r} cannot be read ({reason}). Give a conversation file."
        ) from error
    try:
        transcript = to_transcript(document, pictures)
    except (IndexError, KeyError) as error:
        raise archive.damaged("it names a model that it does not describe") from error
    except ConversationError as error:
        raise archive.damaged(str(error).rstrip(".")) from error
    return SavedChat(
        transcript=transcript,
        saved=document.saved,
        software=document.software,
        changed_pictures=changed,
    )


def software_here() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries under it."""
    found = {"gemma3vl_app": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a remote model needs no torch
            continue
    return found


def _parse(archive: Archive) -> Document:
    data = archive.document()
    try:
        found = checked_json(data)
    except ValueError as error:
        raise archive.damaged(f"conversation.json: {str(error)[:120]}") from error
    try:
        return Document.model_validate(found)
    except ValidationError as error:
        _check_version(archive, found)
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "conversation.json"
        raise archive.damaged(f"{where[:80]}: {first['msg'][:120]}") from error


def checked_json(data: bytes) -> Any:
    """Return parsed JSON without infinite numbers or endless tables; raises `ValueError`.

    An object of this format has few keys. One with a million would cost gigabytes to find fault
    with, each key with its own error.
    """
    parsed = from_json(data, allow_inf_nan=False)
    waiting, in_schema = [parsed], False
    schemas: list[Any] = []
    while waiting or schemas:
        in_schema = not waiting
        value = schemas.pop() if in_schema else waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is infinite")
        if isinstance(value, dict):
            if len(value) > MOST_KEYS and not in_schema:
                raise ValueError(f"an object has {len(value):,} keys")
            for key, inner in value.items():
                (schemas if in_schema or key == "answer_schema" else waiting).append(inner)
        elif isinstance(value, list):
            target = schemas if in_schema else waiting
            target += [each for each in value if isinstance(each, dict | list | float)]
    return parsed


def _check_version(archive: Archive, found: Any) -> None:
    """Say so where the file is of a later version, or of another program."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise archive.damaged(f"its format is not {FORMAT!r}")
    version = found.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ConversationError(
            f"This file is of version {version}; this program reads version {VERSION}. "
            "Update gemma3vl_app to open it."
        )


def _pictures(archive: Archive, document: Document) -> tuple[dict[str, Picture], tuple[str, ...]]:
    """Return the pictures by the hash of their bytes, and the names of those that look changed."""
    used = picture_files(document.turns)
    listed = [each.file for each in document.pictures]
    if used != set(listed) or used != archive.pictures or len(used) != len(listed):
        raise archive.damaged("its pictures are not those that it names")
    if sum(each.width * each.height for each in document.pictures) > MAX_PIXELS:
        raise archive.damaged("its pictures are too large together")
    found: dict[str, Picture] = {}
    changed = []
    names = {p.file: p.name for t in document.turns for p in t.parts if p.type == "picture"}
    for said in document.pictures:
        sha256 = said.file
        data = archive.picture(sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise archive.damaged("a picture's bytes are not those that it was named after")
        limits = PictureLimits(
            max_bytes=max(len(data), 1),
            max_pixels=min(max(said.width * said.height, USUAL.max_pixels), _PILLOW_PIXELS),
            max_side=max(said.width, said.height, USUAL.max_side),
        )
        try:
            picture = Picture.open(data, name=names[sha256], limits=limits)
        except PictureError as error:
            raise archive.damaged(
                f"a picture in it cannot be shown. {error}".rstrip(".")
            ) from error
        if (picture.width, picture.height) != (said.width, said.height):
            raise archive.damaged("a picture has another size than it says")
        if picture.sha256 != said.pixels_sha256:
            changed.append(picture.name)
        found[sha256] = picture
    return found, tuple(changed)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
