"""The zip of a conversation file: which entries may be in it, how large, and how they are read.

Entries are read into memory within limits and never unpacked onto the disk, so that no name in the
file, no link and no compression ratio can do harm. Knows nothing of what the entries mean.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from gemma3vl_app.errors import ConversationError

MIB = 1 << 20
DOCUMENT = "conversation.json"
PICTURE = re.compile(r"pictures/([0-9a-f]{64})")  # named by the SHA-256 of their bytes
FOLDER = "pictures/"  # tools that pack a folder again add it as an entry
SAME_TIME = (1980, 1, 1, 0, 0, 0)  # equal chats are equal files, but for when they were saved

_END = struct.Struct("<4s4H2LH")  # zip's end of central directory, without a comment
_END_SIGNATURE, _END64_LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
_LOCATOR_BYTES = 20


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Sizes in bytes that a conversation file may have; held when writing as well as reading."""

    max_file_bytes: int = 1 << 30
    max_document_bytes: int = 16 * MIB
    max_picture_bytes: int = 64 * MIB
    max_entries: int = 4_000
    max_directory_bytes: int = 4 * MIB


LIMITS = ArchiveLimits()


def write_archive(
    file: BinaryIO, document: bytes, pictures: Mapping[str, bytes], limits: ArchiveLimits = LIMITS
) -> None:
    """Write the zip; `pictures` are encoded files by their SHA-256.

    Raises `ConversationError` for what `read_archive` would refuse: nothing is saved that could not
    be opened.
    """
    check(len(document), limits.max_document_bytes, "The chat's text")
    if len(pictures) + 1 > limits.max_entries:
        raise ConversationError(
            f"The chat has {len(pictures):,} pictures; a file holds {limits.max_entries - 1:,}. "
            "Start a new chat for the rest."
        )
    for data in pictures.values():
        check(len(data), limits.max_picture_bytes, "A picture of the chat")
    total = len(document) + sum(map(len, pictures.values()))
    check(total, limits.max_file_bytes - limits.max_directory_bytes, "The chat")
    with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
        _add(archive, DOCUMENT, document, zipfile.ZIP_DEFLATED)
        for sha256, data in pictures.items():  # compressed already, by their own formats
            _add(archive, f"{FOLDER}{sha256}", data, zipfile.ZIP_STORED)


def _add(archive: zipfile.ZipFile, name: str, data: bytes, compression: int) -> None:
    entry = zipfile.ZipInfo(name, SAME_TIME)
    entry.compress_type = compression
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, data)


def check(size: int, limit: int, what: str) -> None:
    """Raise `ConversationError` where `size` is above `limit`, both in bytes."""
    if size > limit:
        raise ConversationError(
            f"{what} takes {size / MIB:.0f} MiB; a conversation file may hold "
            f"{limit / MIB:.0f} MiB of it. Use smaller pictures or start a new chat."
        )


class Archive:
    """An open conversation file, its entries checked; raises `ConversationError` throughout."""

    def __init__(self, file: BinaryIO, name: str, limits: ArchiveLimits = LIMITS) -> None:
        """Check everything that can be checked before anything is unpacked."""
        self._name, self._limits = name, limits
        self._check_directory(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as bad:
            raise self.damaged("its table of contents cannot be read") from bad
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            self._check_entry(entry)
            self._entries[entry.filename] = entry
        if len(self._zip.infolist()) > limits.max_entries:  # whatever its end says
            raise self.damaged(f"it lists more than {limits.max_entries:,} entries")
        if sum(entry.file_size for entry in self._entries.values()) > limits.max_file_bytes:
            raise self.damaged(f"it unpacks to more than {limits.max_file_bytes / MIB:,.0f} MiB")
        if DOCUMENT not in self._entries:
            raise self.damaged(f"it holds no {DOCUMENT}")

    @property
    def pictures(self) -> frozenset[str]:
        """The SHA-256 of each picture's bytes."""
        found = (PICTURE.fullmatch(name) for name in self._entries)
        return frozenset(match[1] for match in found if match)

    def document(self) -> bytes:
        """Return the bytes of conversation.json."""
        return self._read(DOCUMENT, self._limits.max_document_bytes)

    def picture(self, sha256: str) -> bytes:
        """Return a picture's encoded bytes."""
        return self._read(f"{FOLDER}{sha256}", self._limits.max_picture_bytes)

    def damaged(self, how: str) -> ConversationError:
        """Return the error that says what is wrong with this file."""
        return ConversationError(
            f"{self._name!r} is damaged or no conversation file: {how}. "
            "Open a file that a chat was saved to."
        )

    def _check_directory(self, file: BinaryIO) -> None:
        """Look at the end of the file, where a zip says how much there is to list.

        Python's reader takes all of it into memory at once, whatever it says.
        """
        size = file.seek(0, os.SEEK_END)
        if size > self._limits.max_file_bytes:
            raise ConversationError(
                f"{self._name!r} has {size / MIB:,.0f} MiB; a conversation file has "
                f"{self._limits.max_file_bytes / MIB:,.0f} MiB at most."
            )
        file.seek(max(0, size - _END.size - _LOCATOR_BYTES))
        tail = file.read()
        if len(tail) < _END.size or not tail[-_END.size :].startswith(_END_SIGNATURE):
            raise self.damaged("it does not end as a zip file does")
        _, disk, _, _, entries, directory_bytes, _, _ = _END.unpack(tail[-_END.size :])
        if disk or tail.startswith(_END64_LOCATOR) or entries > self._limits.max_entries:
            raise self.damaged(f"it lists more than {self._limits.max_entries:,} entries")
        if directory_bytes > self._limits.max_directory_bytes:
            raise self.damaged("its table of contents is too large")

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if name not in (DOCUMENT, FOLDER) and not PICTURE.fullmatch(name):
            raise self.damaged(f"it holds {ascii(name)[:80]}, which does not belong there")
        if name in self._entries:
            raise self.damaged(f"it holds {name} twice")
        mode = entry.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)):
            raise self.damaged(f"{name} in it is a link or a device")
        if entry.flag_bits & 1:
            raise self.damaged("it is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.damaged("it is compressed in a way that is not read")

    def _read(self, name: str, limit: int) -> bytes:
        try:
            entry = self._entries[name]
        except KeyError as error:
            raise self.damaged(f"{name} is missing") from error
        if entry.file_size > limit:
            raise ConversationError(
                f"{name} in {self._name!r} unpacks to {entry.file_size / MIB:,.0f} MiB; "
                f"the limit is {limit / MIB:,.0f} MiB."
            )
        try:
            with self._zip.open(entry) as stream:
                data = stream.read(entry.file_size + 1)  # which may be a lie
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as bad:
            raise self.damaged(f"{name} cannot be unpacked") from bad
        if len(data) != entry.file_size:
            raise self.damaged(f"{name} is not as large as it says")
        return data
