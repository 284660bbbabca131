"""The disk cache's folder: private, bounded in bytes, what was used longest ago first out.

Knows names and sizes, not what entries mean. Several processes may share it: files appear whole and
are never written to again, and each process counts what lies there, not what it has put there.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma3vl_app.engine.entry_files import file_bytes, write_entry

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"[0-9a-f-]{16,160}\.(prefix|picture)\.safetensors")
_PART = re.compile(r"\.[0-9a-f]{16}\.part")  # being written, or left by a process that was killed
_PART_SEC = 600.0  # so old, nobody writes it any more


@dataclass(frozen=True)
class _Found:
    name: str
    bytes: int
    used: float  # epoch seconds


class CacheFolder:
    """Writes, counts and deletes entries; says once what the disk refuses, and raises nothing."""

    def __init__(
        self, folder: Path, budget_bytes: int, *, on_gone: Callable[[str], None] = lambda name: None
    ) -> None:
        """Own `folder`, made when first needed; `on_gone` hears of each entry that is deleted."""
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._on_gone = on_gone
        self._said: set[str] = set()

    def path(self, name: str) -> Path:
        """Return where the entry `name` lies, if it is there."""
        return self._folder / name

    def names(self) -> list[str]:
        """Return all entries, most recently used first."""
        found = [each for each in self._scan() if _ENTRY.fullmatch(each.name)]
        return [each.name for each in sorted(found, key=lambda each: each.used, reverse=True)]

    def tidy(self) -> None:
        """Delete what killed processes left half written, and what is beyond the budget."""
        before = time.time() - _PART_SEC
        for each in self._scan():
            if _PART.fullmatch(each.name) and each.used < before:
                self._delete(each.name)
        self._make_room(0)

    def write(
        self, name: str, about: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
    ) -> bool:
        """Write an entry, whole or not at all; False where that was not possible.

        One that is larger than the whole budget is not written, so that it cannot drive out the
        rest.
        """
        size = file_bytes(about, tensors)
        if size > self._budget_bytes or not self.is_private():
            return False
        self._make_room(size)
        aside = self._folder / f".{secrets.token_hex(8)}.part"
        try:
            write_entry(aside, about, tensors)
            os.replace(aside, self.path(name))
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            self.complain("be written", error)
            return False
        return True

    def use(self, name: str) -> bool:
        """Remember that an entry was of use just now; False where it is not there."""
        try:
            os.utime(self.path(name))
        except FileNotFoundError:
            return False
        except OSError:  # a disk that may only be read
            return True
        return True

    def discard(self, name: str, why: Exception) -> None:
        """Delete an entry that is not what its name says."""
        self._say(f"An entry of the disk cache is damaged ({why}) and is deleted.")
        self._delete(name)

    def complain(self, what: str, error: OSError) -> None:
        """Say once that the cache cannot `what`; paths stay out of it."""
        reason = error.strerror or type(error).__name__
        self._say(f"The disk cache cannot {what} ({reason}). Answers go on without it.")

    def is_private(self) -> bool:
        """Make the folder where it is not there; whether it is this user's, and nobody else's."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.lstat(self._folder)
            if hasattr(os, "getuid"):
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                    self._say("The disk cache's folder is somebody else's, and is not used.")
                    return False
                if stat.S_IMODE(found.st_mode) & 0o077:
                    os.chmod(self._folder, 0o700)
        except OSError as error:
            self.complain("be used", error)
            return False
        return True

    def _make_room(self, size: int) -> None:
        """Delete what was used longest ago until `size` more bytes are within the budget."""
        found = sorted(self._scan(), key=lambda each: each.used)
        total = sum(each.bytes for each in found)
        for each in found:
            if total + size <= self._budget_bytes:
                return
            if _ENTRY.fullmatch(each.name):
                self._delete(each.name)
                total -= each.bytes

    def _scan(self) -> list[_Found]:
        """Return what lies there and is named as we name; anything else is not ours to touch."""
        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if not (_ENTRY.fullmatch(entry.name) or _PART.fullmatch(entry.name)):
                        continue
                    with suppress(FileNotFoundError):  # another process was faster
                        about = entry.stat(follow_symlinks=False)
                        found.append(_Found(entry.name, about.st_size, about.st_mtime))
        except FileNotFoundError:
            return []
        except OSError as error:
            self.complain("be read", error)
        return found

    def _delete(self, name: str) -> None:
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            self.complain("be tidied", error)
        self._on_gone(name)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)
