"""Folders of torch.distributed.checkpoint, opened with suspicion: no code of theirs is run.

Their directory is a pickle. Here it may name the classes of a directory and nothing else; what only
Megatron's writer needs becomes a thing that does nothing. Tensors are read by torch's restricted
reader (`weights_only`) when they are asked for: of a piece of which only a part is, that part.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, BinaryIO

import torch
from torch._subclasses import FakeTensorMode
from torch.distributed.checkpoint import filesystem, metadata, planner

from gemma3vl_app.conversion.layouts import Shape, size_bytes
from gemma3vl_app.errors import LoadError

DIRECTORY = ".metadata"
MAX_DIRECTORY_BYTES = 1 << 28  # an entry for each piece of each tensor takes some 200 bytes
MAX_DIMENSIONS = 8
AGAIN = "Download or copy it again."
ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): PosixPath,
    ("pathlib", "PurePosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PosixPath,  # as Python 3.13 calls it
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("builtins", "set"): set,
}


class Inert:
    """What stands for an object of another program: it takes anything, and does nothing."""

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.split(".")[0] == "megatron" or module == planner.__name__:
            return Inert  # Megatron-Core keeps plans of its own there, which nothing here needs
        raise pickle.UnpicklingError(f"{module}.{name}")


@dataclass(frozen=True)
class DcpTensor:
    """A tensor of `whole` shape in a checkpoint, or the part of it from `start` on.

    `shape` is that of the part. Nothing is read yet.
    """

    checkpoint: DcpCheckpoint
    key: str
    dtype: torch.dtype
    whole: Shape
    start: Shape
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return size_bytes(self.shape, self.dtype)

    @property
    def file(self) -> Path:
        """The folder that it is in."""
        return self.checkpoint.folder

    def layer(self, index: int) -> DcpTensor:
        """Return the part of one index of the first dimension, without that dimension."""
        start = (index, *self.start[1:])
        return dataclasses.replace(self, start=start, shape=self.shape[1:])

    def first_rows(self, rows: int) -> DcpTensor:
        """Return the first `rows` of the first dimension, or all where there are fewer."""
        return dataclasses.replace(self, shape=(min(rows, self.shape[0]), *self.shape[1:]))

    def read(self) -> torch.Tensor:
        """Return it; only the stored pieces that it touches are read. Raises `LoadError`."""
        extent = (*(1,) * (len(self.whole) - len(self.shape)), *self.shape)
        return self.checkpoint.region(self, extent).reshape(self.shape)


@dataclass(frozen=True)
class DcpCheckpoint:
    """An opened folder; `tensors` are all it holds, other objects left aside."""

    folder: Path
    name: str
    directory: metadata.Metadata

    @property
    def tensors(self) -> dict[str, DcpTensor]:
        """Its tensors by key, not read."""
        return {
            key: DcpTensor(
                checkpoint=self,
                key=key,
                dtype=entry.properties.dtype,
                whole=tuple(entry.size),
                start=(0,) * len(entry.size),
                shape=tuple(entry.size),
            )
            for key, entry in self.directory.state_dict_metadata.items()
            if isinstance(entry, metadata.TensorStorageMetadata)
        }

    def region(self, tensor: DcpTensor, extent: Shape) -> torch.Tensor:
        """Return the values of a tensor from its start on, put together from stored pieces."""
        entry: Any = self.directory.state_dict_metadata[tensor.key]
        result = torch.empty(extent, dtype=tensor.dtype)
        boxes: list[tuple[list[int], list[int]]] = []  # parts that are filled, low to high
        for chunk in entry.chunks:
            low = [max(a, b) for a, b in zip(tensor.start, chunk.offsets, strict=True)]
            ends = zip(tensor.start, extent, chunk.offsets, chunk.sizes, strict=True)
            high = [min(a + n, b + m) for a, n, b, m in ends]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            if any(_overlap(low, high, box) for box in boxes):
                raise self._damaged(tensor.key)
            boxes.append((low, high))
            ours, theirs = (
                tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
                for origin in (tensor.start, chunk.offsets)
            )
            part = self._part(tensor, chunk, theirs)
            if part.shape == extent:
                result = part
            else:
                result[ours] = part
        filled = sum(math.prod(b - a for a, b in zip(*box, strict=True)) for box in boxes)
        if filled != result.numel():
            raise self._damaged(tensor.key)
        return result

    def _part(
        self, tensor: DcpTensor, chunk: metadata.ChunkStorageMetadata, inside: tuple[slice, ...]
    ) -> torch.Tensor:
        """Read what is `inside` one stored piece, whose shape the directory announces."""
        try:
            info = self.directory.storage_data[metadata.MetadataIndex(tensor.key, chunk.offsets)]
            with (self.folder / _plain_name(info.relative_path)).open("rb") as file:
                stored = _Window(file, info.offset, info.length)
                # torch packs nothing: what is packed could unpack to any size
                with zipfile.ZipFile(stored) as records:
                    _require(all(r.compress_type == zipfile.ZIP_STORED for r in records.infolist()))
                sizes = tuple(chunk.sizes)
                if all(each == slice(0, n) for each, n in zip(inside, sizes, strict=True)):
                    return _load(stored, tensor.dtype, sizes)
                with FakeTensorMode():  # tells where the numbers lie, without reading them
                    part = _load(stored, tensor.dtype, sizes)[inside]
                if not part.is_contiguous():
                    return _load(stored, tensor.dtype, sizes)[inside]
                storage: Any = part.untyped_storage()
                stored.seek(storage._checkpoint_offset + part.storage_offset() * part.itemsize)
                numbers = torch.empty(part.shape, dtype=part.dtype)
                data = numbers.reshape(-1).view(torch.uint8).numpy()
                _require(stored.readinto(data) == part.nbytes)
                return numbers
        except FileNotFoundError as error:
            raise LoadError(f"{self.name!r} lacks a file of its weights. {AGAIN}") from error
        except Exception as error:  # torch's reader fails in as many ways as bytes can be wrong
            raise self._damaged(tensor.key) from error

    def _damaged(self, key: str) -> LoadError:
        return LoadError(f"{self.name!r} is damaged: {ascii(key)[:80]} cannot be read. {AGAIN}")


def open_dcp(folder: Path, name: str) -> DcpCheckpoint:
    """Open a folder of torch.distributed.checkpoint; `name` is the model's, for messages.

    Raises `LoadError` for a directory that is damaged, or that would run code.
    """
    path = folder / DIRECTORY
    try:
        if path.stat().st_size > MAX_DIRECTORY_BYTES:
            raise LoadError(f"{DIRECTORY} of {name!r} is far too large for what it should be.")
        with path.open("rb") as file:
            directory = _Unpickler(file).load()
        _check(directory)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{DIRECTORY} of {name!r} holds {ascii(str(error))[:80]}, which no directory of "
            "weights does. It may be made to run code, and was not read."
        ) from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise LoadError(f"{DIRECTORY} of {name!r} cannot be read: {why}.") from error
    except LoadError:
        raise
    except Exception as error:  # a pickle fails in as many ways as bytes can be wrong
        raise LoadError(f"{DIRECTORY} of {name!r} is damaged. {AGAIN}") from error
    return DcpCheckpoint(folder, name, directory)


class _Window(io.RawIOBase):
    """So many bytes of an open file from an offset on, as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size_bytes: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._start + self._at)
        # Files of all kinds have it, though IO[bytes] does not declare it
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._at += count
        return int(count)


def _load(stored: _Window, dtype: torch.dtype, sizes: Shape) -> torch.Tensor:
    """Return a stored piece; raises `ValueError` unless it is what the directory announces."""
    stored.seek(0)
    file: Any = stored  # it is a file to torch, too
    piece: torch.Tensor = torch.load(file, map_location="cpu", weights_only=True)
    _require(isinstance(piece, torch.Tensor) and piece.dtype == dtype)
    _require(piece.device.type == "cpu" and piece.layout == torch.strided)
    _require(tuple(piece.shape) == sizes)
    return piece


def _check(directory: Any) -> None:
    """Raise `ValueError` unless all that is used of a directory is what it should be."""
    _require(isinstance(directory, metadata.Metadata))
    _require(isinstance(directory.storage_data, dict))
    for key, entry in directory.state_dict_metadata.items():
        _require(isinstance(key, str))
        if isinstance(entry, metadata.TensorStorageMetadata):
            _require(isinstance(entry.properties.dtype, torch.dtype))
            _require(len(entry.size) <= MAX_DIMENSIONS and _are_sizes(entry.size))
            for chunk in entry.chunks:
                _require(len(chunk.offsets) == len(chunk.sizes) == len(entry.size))
                _require(_are_sizes(chunk.offsets) and _are_sizes(chunk.sizes))


def _are_sizes(values: Any) -> bool:
    return all(type(each) is int and each >= 0 for each in values)


def _overlap(low: list[int], high: list[int], box: tuple[list[int], list[int]]) -> bool:
    return all(max(a, c) < min(b, d) for a, b, c, d in zip(low, high, *box, strict=True))


def _plain_name(name: str) -> str:
    _require(PurePosixPath(name).name == name)
    return name


def _require(is_so: bool) -> None:
    if not is_so:
        raise ValueError("not what it should be")
