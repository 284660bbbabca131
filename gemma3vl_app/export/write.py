"""Writing an export: a text file and its pictures beside it, all or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gemma3vl_app.atomic_file import atomic_file
from gemma3vl_app.errors import ConversationError

_WHAT_NEXT = "Choose another name, or have it replaced with overwrite=True."


@dataclass(frozen=True)
class Document:
    """An export before it is written: its text, picture files by name, and notes for people."""

    text: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What was written: the file, the folder of its `pictures` (if any), and notes for people."""

    file: Path
    folder: Path | None = None
    pictures: int = 0
    notes: tuple[str, ...] = ()


def pictures_folder(target: Path) -> Path:
    """Return where the pictures of an export to `target` go: `<stem>-pictures` beside it."""
    return target.with_name(f"{target.stem}-pictures")


def write(target: Path, document: Document, *, overwrite: bool) -> Exported:
    """Write `document` to `target` and its pictures beside it, or leave all as it was.

    A folder that is there already keeps its other files; a picture that is there already is used.
    Raises `ConversationError` when `target` or a different picture of the same name exists, unless
    `overwrite`.
    """
    folder = pictures_folder(target) if document.pictures else None
    data = document.text.encode("utf-8")
    try:
        _check(target, folder, document.pictures, overwrite)
        with ExitStack() as staging, ExitStack() as undo:
            with atomic_file(target, overwrite=overwrite) as file:
                file.write(data)
                if folder is not None:
                    place = tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent)
                    _place(document.pictures, folder, Path(staging.enter_context(place)), undo)
            undo.pop_all()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise ConversationError(
            f"{target.name!r} cannot be written ({reason}). Choose another folder or name."
        ) from error
    return Exported(target, folder, len(document.pictures), document.notes)


def _place(pictures: Mapping[str, bytes], folder: Path, staging: Path, undo: ExitStack) -> None:
    """Write pictures aside, then move them to `folder`; `undo` learns how to bring all back."""
    new, old = staging / "new", staging / "old"
    new.mkdir()
    old.mkdir()
    for name, data in pictures.items():
        (new / name).write_bytes(data)
    if not folder.exists():
        new.rename(folder)
        undo.callback(folder.rename, new)
        return
    for name in pictures:
        if (folder / name).exists():
            (folder / name).rename(old / name)
            undo.callback((old / name).rename, folder / name)
        (new / name).rename(folder / name)
        undo.callback((folder / name).rename, new / name)


def _check(
    target: Path, folder: Path | None, pictures: Mapping[str, bytes], overwrite: bool
) -> None:
    """Raise `ConversationError` for what stands in the way, before anything is written."""
    if target.is_dir():
        raise ConversationError(f"{target.name!r} is a folder. Choose another name for the export.")
    if os.path.lexists(target) and not overwrite:
        raise ConversationError(f"{target.name!r} exists already. {_WHAT_NEXT}")
    if folder is None or not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConversationError(
            f"{folder.name!r}, where the pictures would go, is not a folder. "
            "Choose another name for the export."
        )
    for name, data in pictures.items():
        there = folder / name
        if not os.path.lexists(there) or (there.is_file() and there.read_bytes() == data):
            continue
        if there.is_dir() or not overwrite:
            raise ConversationError(
                f"Another {name!r} exists already in {folder.name!r}. {_WHAT_NEXT}"
            )
