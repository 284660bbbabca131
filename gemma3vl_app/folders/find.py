"""Which pictures a folder holds, and what each is called in what is written about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma3vl_app.errors import PictureError
from gemma3vl_app.wording import counted

READABLE = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"))
# Pictures too, though of kinds that are not read: they are told as failures, not passed over.
SUFFIXES = READABLE | {".tif", ".tiff", ".heic", ".heif", ".avif"}
_SIDECAR_SUFFIXES = frozenset((".txt", ".json"))

PathOrPaths = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class FoundPictures:
    """Pictures by name: their paths below `base`, with slashes, in the order people count.

    `skipped` is the number of other files; hidden ones are not looked at.
    """

    base: Path
    names: tuple[str, ...]
    skipped: int = 0

    def path(self, name: str) -> Path:
        """Return where a picture lies."""
        return self.base / name


def find_pictures(pictures: PathOrPaths, *, recursive: bool = False) -> FoundPictures:
    """Find the pictures of a folder, or of several files and folders, each once.

    Names are relative to the one folder, or to the folder that all that is given lies in.
    `recursive` looks into folders inside folders, but follows no links to folders. Raises
    `PictureError` for what is not there or cannot be read, and where there is no picture at all.
    """
    given = _absolute([pictures] if isinstance(pictures, str | Path) else list(pictures))
    base = _shared_folder(given)
    files = [file for path in given for file in _files(path, recursive=recursive)]
    names = {Path(os.path.relpath(file, base)).as_posix() for file in files if _is_picture(file)}
    skipped = {file for file in files if not (_is_picture(file) or _is_sidecar(file))}
    if not names:
        raise PictureError(_nothing_found(given, len(skipped), recursive=recursive))
    return FoundPictures(base, tuple(sorted(names, key=_natural)), len(skipped))


def _nothing_found(given: list[Path], others: int, *, recursive: bool) -> str:
    """Say that there are no pictures, and what is one."""
    where = ", ".join(f"'{path.name}'" for path in given[:3]) + (", ..." if given[3:] else "")
    endings = f"Pictures are files that end in {', '.join(sorted(READABLE))}."
    if not any(path.is_dir() for path in given):
        return f"{where} {'is no picture' if len(given) == 1 else 'are no pictures'}. {endings}"
    other = f", but {counted(others, 'other file')}" if others else ""
    inside = "" if recursive else " Folders inside it are searched, too, with recursive=True."
    return f"There is no picture in {where}{other}. {endings}{inside}"


def _absolute(given: list[str | Path]) -> list[Path]:
    if not given:
        raise PictureError("No folder and no picture was given. Name at least one.")
    paths = [Path(os.path.abspath(path)) for path in given]
    for path in paths:
        if not path.exists():
            raise PictureError(f"'{path.name}' was not found. Check its path.")
    return paths


def _shared_folder(paths: list[Path]) -> Path:
    folders = [path if path.is_dir() else path.parent for path in paths]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError as error:  # Windows
        raise PictureError(
            "The pictures lie on different drives. Ask about each drive's on their own."
        ) from error


def _files(path: Path, *, recursive: bool) -> Iterator[Path]:
    """Yield the files of a folder that are not hidden, or the one file."""
    if not path.is_dir():
        yield path
        return
    for folder, inner, files in os.walk(path, onerror=_unreadable):
        inner[:] = [name for name in inner if recursive and not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise PictureError(
        f"The folder '{Path(error.filename).name}' cannot be read ({error.strerror}). "
        "Check its permissions."
    ) from error


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _is_sidecar(file: Path) -> bool:
    return file.suffix in _SIDECAR_SUFFIXES and _is_picture(file.with_suffix(""))


def _natural(name: str) -> tuple[tuple[tuple[str | int, ...], ...], str]:
    """Return a key that sorts IMG_9 before IMG_10, folder by folder."""
    return tuple(_with_numbers(part) for part in name.split("/")), name


def _with_numbers(part: str) -> tuple[str | int, ...]:
    pieces = re.split(r"(\d+)", part.casefold())  # text and digits in turns, text first
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces))
