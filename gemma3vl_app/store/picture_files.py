"""The pictures' own bytes, one file each, named by their SHA-256. Knows no database."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from gemma3vl_app.atomic_file import atomic_file

ORPHAN_SECONDS = 600.0  # a file that is younger may be about to be named in the database
_NAME = re.compile(r"[0-9a-f]{64}")
_HALF_WRITTEN = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{8}")  # by `atomic_file`
_log = logging.getLogger(__name__)


class PictureFiles:
    """A private folder of picture files; raises `OSError` throughout."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where it is not there."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Return the SHA-256 of `data`, whose file is on the disk for good."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._folder / sha256
        with suppress(FileNotFoundError):
            if path.read_bytes() == data:
                os.utime(path)  # in use again: no orphan, whatever a sweep saw before
                return sha256
        with atomic_file(path) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o600)
            file.write(data)
        return sha256

    def has(self, sha256: str) -> bool:
        """Whether the file is there."""
        return (self._folder / sha256).exists()

    def read(self, sha256: str) -> bytes | None:
        """Return the bytes of that SHA-256, None where they are missing or damaged."""
        try:
            data = (self._folder / sha256).read_bytes()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def remove(self, sha256: str) -> None:
        """Delete the file, if it is there."""
        (self._folder / sha256).unlink(missing_ok=True)

    def sweep(self, used: Container[str]) -> None:
        """Delete old files that are not `used`, and what a killed process left half written."""
        before = time.time() - ORPHAN_SECONDS
        for path in self._folder.iterdir():
            unused = _NAME.fullmatch(path.name) and path.name not in used
            if (unused or _HALF_WRITTEN.fullmatch(path.name)) and _written_before(path, before):
                _log.info("Deleting the picture file %s, which nothing names.", path.name)
                path.unlink(missing_ok=True)


def _written_before(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:  # another process was faster
        return False
