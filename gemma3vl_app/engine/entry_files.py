"""One entry of the disk cache as a file: safetensors, written in a stream, believed only if whole.

Knows nothing of what the tensors mean. A file ends in a checksum of all before it, so that it can
be written tensor by tensor: no second copy of keys and values is ever in memory.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

_MAX_HEADER_BYTES = 1 << 20  # names, shapes, and where pictures stand; larger is no file of ours
_LENGTH_BYTES = 8
_CHECKSUM, _CHECKSUM_BYTES = "checksum", 4
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
}


class DamagedFile(Exception):
    """A file is not what its name says."""


def storable(tensor: torch.Tensor) -> bool:
    """Whether a tensor's dtype has a place in these files."""
    return tensor.dtype in _DTYPES


def file_bytes(about: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> int:
    """Return how large the file of an entry will be."""
    data = sum(tensor.nbytes for tensor in tensors.values())
    return len(_header(about, tensors)) + data + _CHECKSUM_BYTES


def write_entry(path: Path, about: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a new file that only its owner may read; raises `OSError`, which may leave a part."""
    checksum = _checksum_of(about)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "wb") as file:
        file.write(_header(about, tensors))
        for tensor in tensors.values():
            data = _bytes_of(tensor)
            checksum = zlib.crc32(data, checksum)
            file.write(data)
        file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))


class StoredEntry:
    """An open file; tensors are views of its memory map until they are copied.

    `about` is what `write_entry` was given. Tensors are read in the order they were written.
    """

    def __init__(self, file: Any) -> None:  # what safetensors leaves untyped
        self.about: dict[str, str] = file.metadata() or {}
        self._file = file
        self._checksum = _checksum_of(self.about)

    def read(self, name: str) -> torch.Tensor:
        """Return the next tensor, which counts for the checksum; raises `DamagedFile`."""
        with _as_damage():
            tensor: torch.Tensor = self._file.get_tensor(name)
            self._checksum = zlib.crc32(_bytes_of(tensor), self._checksum)
            return tensor

    def check(self) -> None:
        """Raise `DamagedFile` unless all that was read is what was written."""
        with _as_damage():
            stored = bytes(self._file.get_tensor(_CHECKSUM).tolist())
        if stored != self._checksum.to_bytes(_CHECKSUM_BYTES, "little"):
            raise DamagedFile("its checksum is another one")


@contextmanager
def open_entry(path: Path) -> Iterator[StoredEntry]:
    """Open a file for reading; raises `DamagedFile` for what it turns out not to be, or `OSError`.

    The file must not change meanwhile: entries are replaced or deleted, never written to.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 0 < length <= _MAX_HEADER_BYTES:  # a large one would take long to parse
        raise DamagedFile("its header has no sensible size")
    with _as_damage():
        opened = safe_open(path, framework="pt")
        entry = StoredEntry(opened)
    with opened:
        yield entry


@contextmanager
def _as_damage() -> Iterator[None]:
    """Turn what safetensors and torch say of a bad file into `DamagedFile`."""
    try:
        yield
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise DamagedFile(f"it cannot be read ({type(error).__name__})") from error


def _header(about: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the length and the header of a safetensors file, the checksum behind the tensors."""
    entries: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    entries[_CHECKSUM] = {
        "dtype": "U8",
        "shape": [_CHECKSUM_BYTES],
        "data_offsets": [at, at + _CHECKSUM_BYTES],
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # or the tensors would not be aligned
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _checksum_of(about: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(dict(about), sort_keys=True).encode())


def _bytes_of(tensor: torch.Tensor) -> Any:
    """Return a tensor's bytes as a flat array, copied only where it is not contiguous or here."""
    return tensor.to("cpu").contiguous().view(torch.uint8).numpy().reshape(-1)
