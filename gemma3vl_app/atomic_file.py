"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends, and not before.

    Whatever fails, a crash included, `path` is as it was, or whole and on the disk. Where it exists
    its permissions stay. Raises `FileExistsError` where it exists and `overwrite` is false, else
    what the system says (`OSError`).
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing to where it does
    aside = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}")
    _refuse(target, overwrite)
    number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse(target, overwrite)  # somebody may have been faster
        with suppress(OSError):
            os.chmod(aside, target.stat().st_mode & 0o7777)
        os.replace(aside, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise
    _sync_folder(target.parent)


def _refuse(target: Path, overwrite: bool) -> None:
    if not overwrite and target.exists():
        raise FileExistsError(f"{target.name} exists")


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system can do that for folders."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
