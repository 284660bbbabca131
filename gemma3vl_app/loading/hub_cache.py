"""The hub's cache on this machine, in the layout that other tools share; and small files in it."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file of a commit: its size and its hash, which is also its name in the cache."""

    name: str
    size_bytes: int
    hash: str

    def digest(self) -> hashlib._Hash:
        """Return the beginning of the hash that the hub names the file by."""
        if len(self.hash) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size_bytes)


@dataclass(frozen=True)
class Repo:
    """A repository, its wanted revision, and its folder in the hub's cache."""

    id: str
    revision: str

    @property
    def folder(self) -> Path:
        """Where all of it is kept."""
        return Path(constants.HF_HUB_CACHE) / f"models--{self.id.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """The file that says which commit the revision means."""
        return self.folder / "refs" / self.revision

    @property
    def page(self) -> str:
        """Its page, for people."""
        return f"https://huggingface.co/{self.id}"

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit: what a model is loaded from."""
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> Path:
        """Our list of what the commit consists of: tells a complete snapshot from a broken off."""
        return self.folder / "gemma3vl" / f"{commit}.json"

    def blob(self, file: HubFile) -> Path:
        """Where a file itself lies, by its hash."""
        return self.folder / "blobs" / file.hash

    def partial(self, file: HubFile) -> Path:
        """Where what has arrived of a file lies."""
        return self.folder / "blobs" / f"{file.hash}.incomplete"

    def lock(self, file: HubFile) -> Path:
        """The lock that huggingface_hub takes for the file, too."""
        return Path(constants.HF_HUB_CACHE) / ".locks" / self.folder.name / f"{file.hash}.lock"


def read_text(path: Path) -> str:
    """Return a small file's text, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def file_size(path: Path) -> int:
    """Return a file's size in bytes, -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def note(path: Path, text: str) -> None:
    """Write a small file whole or not at all; a cache that may only be read stays as it is."""
    if read_text(path) == text:
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        logger.debug("%s could not be noted: %s", path.name, error.strerror)
