"""GGUF files, opened with suspicion: every count, length and offset is checked before it is used.

Knows the file format (versions 2 and 3, little-endian) and nothing of models. Any bytes give a
summary or a `LoadError`, quickly: the limits below bound the work whatever a file announces.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import gguf
import numpy as np
import numpy.typing as npt

from gemma3vl_app.errors import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had 32-bit lengths; nobody ships it any more
FIXED_BYTES = 24  # magic, version, number of tensors, number of values
DEFAULT_ALIGNMENT = 32
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {  # type number: how `struct` reads one
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f"},
    **{7: "<B", 10: "<Q", 11: "<q", 12: "<d"},
}

# Gemma 3's largest header takes 7 MB, a vocabulary with merges 20 MB.
MAX_HEADER_BYTES = 64 << 20
MAX_VALUES = 1 << 12
MAX_TENSORS = 1 << 14
MAX_STRINGS = 1 << 20  # in all arrays together: each is stepped over one by one
MAX_NAME_BYTES = 1 << 9
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
SHOWN = 60  # characters of a foreign name in a message

Scalar = bool | int | float | str


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `shape` as torch counts (rows first), `start` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    bytes: int


@dataclass(frozen=True)
class ArrayInfo:
    """An array of a header that was stepped over: `length` entries of type number `kind`."""

    kind: int
    length: int
    start: int


@dataclass(frozen=True)
class GgufSummary:
    """What a GGUF file says of itself, without its arrays' contents and its tensors' data."""

    name: str
    architecture: str
    values: Mapping[str, Scalar]
    arrays: Mapping[str, ArrayInfo]
    tensors: tuple[TensorInfo, ...]
    data_start: int


class Field(Protocol):
    """A value of a header; `gguf.ReaderField` is one too."""

    def contents(self) -> Any:
        """Return the value: a scalar, a string or a list."""


class Tensor(Protocol):
    """A tensor as it is stored."""

    @property
    def name(self) -> str:
        """Its GGUF name."""

    @property
    def tensor_type(self) -> gguf.GGMLQuantizationType:
        """How its blocks are stored."""

    @property
    def data(self) -> npt.NDArray[Any]:
        """Its blocks (rows..., one row); a row counts numbers, or bytes where it is uint8."""


class Reader(Protocol):
    """An opened GGUF: what both `open_gguf` and `gguf.GGUFReader` give."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """The header's values by key."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """All tensors, in the file's order."""


def check_gguf(path: Path, name: str) -> GgufSummary:
    """Check the header of a GGUF file and return what it says; reads no tensor.

    `name` is what people call the file. Raises `LoadError` for anything but a whole GGUF: another
    kind of file, one cut short, one whose numbers cannot be true.
    """
    if not path.is_file():  # a pipe would make us wait for ever
        raise LoadError(f"There is no file {name!r}. Check the name and the folder.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size < FIXED_BYTES:
                _Header(file.read(), size, name).refuse("it is too short to be a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(data, size, name).read()
    except OSError as error:
        raise LoadError(
            f"{name!r} cannot be read ({error.strerror or type(error).__name__})."
        ) from error


def open_gguf(paths: Sequence[Path]) -> Reader:
    """Open the parts of one GGUF (mostly a single file) for reading, memory-mapped.

    Values come from the first part, tensors from all. Raises `LoadError` as `check_gguf` does, and
    where two parts hold the same tensor.
    """
    opened = [(check_gguf(path, path.name), np.memmap(path, mode="r")) for path in paths]
    first, data = opened[0]
    fields: dict[str, Field] = {key: _Value(value) for key, value in first.values.items()}
    for key, array in first.arrays.items():
        fields[key] = _Array(array, data, key, first.name)
    tensors = [_StoredTensor(info, part) for summary, part in opened for info in summary.tensors]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise LoadError(f"The parts of {first.name!r} hold some tensors twice. Copy them again.")
    return _Opened(fields, tensors)


def stored_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape in numbers, rows first."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    *rows, last = tensor.data.shape
    return (*rows, last * tensor.data.itemsize // block_bytes * block)


class _Header:
    """A cursor over a header; every step checks that what it takes is there."""

    def __init__(self, data: bytes | mmap.mmap, size: int, name: str) -> None:
        self._data, self._size, self._name = data, size, name
        self._limit = min(size, MAX_HEADER_BYTES)
        self._at = 0
        self._strings = 0  # in arrays, so far

    def refuse(self, what: str) -> NoReturn:
        raise LoadError(
            f"{self._name!r} cannot be used: {what}. Download or copy it again, as one whole file."
        )

    def read(self) -> GgufSummary:
        # 1) Is it one at all?
        if self._data[:4] != MAGIC:
            self.refuse("it is not a GGUF file")
        self._at = len(MAGIC)
        version = self._number("<I")
        if version & 0xFFFF == 0 and version:
            self.refuse("it is a big-endian GGUF, for another kind of computer")
        if version not in VERSIONS:
            self.refuse(f"it is of GGUF version {version}; versions 2 and 3 can be read")
        tensors, values = self._number("<Q"), self._number("<Q")
        if tensors > MAX_TENSORS or values > MAX_VALUES:
            self.refuse(f"it announces {tensors} tensors and {values} settings")
        # 2) Settings
        scalars: dict[str, Scalar] = {}
        arrays: dict[str, ArrayInfo] = {}
        for _ in range(values):
            key = self._string(MAX_NAME_BYTES)
            if key in scalars or key in arrays:
                self.refuse(f"it holds the setting {key[:SHOWN]!r} twice")
            value = self._value(key)
            if isinstance(value, ArrayInfo):
                arrays[key] = value
            else:
                scalars[key] = value
        # 3) Where the tensors lie
        found = [self._tensor() for _ in range(tensors)]
        alignment = self._alignment(scalars)
        data_start = -(-self._at // alignment) * alignment
        return GgufSummary(
            name=self._name,
            architecture=str(scalars.get("general.architecture", "")),
            values=scalars,
            arrays=arrays,
            tensors=self._placed(found, data_start, alignment),
            data_start=data_start,
        )

    # --- pieces ---

    def _skip(self, count: int) -> int:
        """Step over `count` bytes; return where they begin."""
        start = self._at
        if count > self._limit - start:
            self.refuse(
                "its header is cut short or damaged"
                if self._limit == self._size
                else f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB"
            )
        self._at = start + count
        return start

    def _number(self, form: str) -> Any:
        return struct.unpack_from(form, self._data, self._skip(struct.calcsize(form)))[0]

    def _string(self, most_bytes: int = MAX_HEADER_BYTES) -> str:
        length = self._number("<Q")
        if length > most_bytes:
            self.refuse("its header is damaged: a name in it is too long")
        start = self._skip(length)
        try:
            return str(self._data[start : start + length], encoding="utf-8")
        except UnicodeDecodeError:
            self.refuse("its header is damaged: a text in it is not UTF-8")

    def _value(self, key: str) -> Scalar | ArrayInfo:
        kind = self._number("<I")
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(key)
        if kind not in SCALARS:
            self.refuse(f"its setting {key[:SHOWN]!r} is of an unknown type ({kind})")
        number: int | float = self._number(SCALARS[kind])
        if kind != BOOL:
            return number
        if number not in (0, 1):
            self.refuse(f"its setting {key[:SHOWN]!r} is neither true nor false")
        return bool(number)

    def _array(self, key: str) -> ArrayInfo:
        kind, length = self._number("<I"), self._number("<Q")
        start = self._at
        if kind in SCALARS:
            self._skip(length * struct.calcsize(SCALARS[kind]))
        elif kind == STRING:
            self._strings += length
            if self._strings > MAX_STRINGS:
                self.refuse(f"it announces {self._strings} texts")
            self._skip_strings(length)
        else:  # arrays of arrays exist in the format, and in no file of a language model
            self.refuse(f"its setting {key[:SHOWN]!r} is a list of an unknown type ({kind})")
        return ArrayInfo(kind, length, start)

    def _skip_strings(self, count: int) -> None:
        """Step over `count` strings: a quarter of a million in a vocabulary, so no calls inside."""
        length_of, data, at = struct.Struct("<Q").unpack_from, self._data, self._at
        last = self._limit - 8  # where a length may begin
        for _ in range(count):
            if at > last:
                self._skip(self._limit)
            at += 8 + length_of(data, at)[0]
        self._skip(at - self._at)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type number and offset, as written."""
        name = self._string(MAX_NAME_BYTES)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.refuse(f"its tensor {name[:SHOWN]!r} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("<I"), self._number("<Q")

    def _alignment(self, scalars: Mapping[str, Scalar]) -> int:
        alignment = scalars.get("general.alignment", DEFAULT_ALIGNMENT)
        known = isinstance(alignment, int) and 1 <= alignment <= MAX_ALIGNMENT
        if not known or int(alignment) & (int(alignment) - 1):
            self.refuse("its general.alignment is not a power of two")
        return int(alignment)

    def _placed(
        self, found: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> tuple[TensorInfo, ...]:
        """Return the tensors with their places, each inside the file and none over another."""
        placed: dict[str, TensorInfo] = {}
        for name, shape, number, offset in found:
            shown = name[:SHOWN]
            if name in placed:
                self.refuse(f"it holds the tensor {shown!r} twice")
            try:
                kind = gguf.GGMLQuantizationType(number)
            except ValueError:
                self.refuse(f"its tensor {shown!r} is of an unknown type ({number})")
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            elements = 1
            for extent in shape:
                elements *= extent
            if elements < 1 or shape[-1] % block:
                self.refuse(f"its tensor {shown!r} has an impossible shape for {kind.name}")
            length = elements // block * block_bytes
            if offset % alignment or data_start + offset + length > self._size:
                self.refuse(f"the data of its tensor {shown!r} is not all there")
            placed[name] = TensorInfo(name, shape, kind, data_start + offset, length)
        end = data_start
        for tensor in sorted(placed.values(), key=lambda each: each.start):
            if tensor.start < end:
                self.refuse(f"the data of its tensor {tensor.name[:SHOWN]!r} overlaps another's")
            end = tensor.start + tensor.bytes
        return tuple(placed.values())


# --- an opened file ---


@dataclass(frozen=True)
class _Value:
    value: Scalar

    def contents(self) -> Scalar:
        return self.value


@dataclass(frozen=True)
class _Array:
    """An array of a checked header; its contents are read when first asked for, and kept."""

    info: ArrayInfo
    file: npt.NDArray[np.uint8]
    key: str
    name: str

    def contents(self) -> list[Any]:
        return self._contents

    @cached_property
    def _contents(self) -> list[Any]:
        kind, length, at = self.info.kind, self.info.length, self.info.start
        if kind != STRING:
            dtype = np.dtype("?" if kind == BOOL else SCALARS[kind])
            return list(self.file[at : at + length * dtype.itemsize].view(dtype).tolist())
        length_of, data = struct.Struct("<Q").unpack_from, self.file.data
        texts = []
        try:
            for _ in range(length):
                start = at + 8
                at = start + length_of(data, at)[0]
                texts.append(str(data[start:at], encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise LoadError(
                f"{self.name!r} holds text that is not UTF-8 in {self.key[:SHOWN]!r}. "
                "Download or copy it again."
            ) from error
        return texts


@dataclass(frozen=True)
class _StoredTensor:
    info: TensorInfo
    file: npt.NDArray[np.uint8]

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def tensor_type(self) -> gguf.GGMLQuantizationType:
        return self.info.kind

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """Return the blocks (rows..., bytes of a row), a view of the file."""
        flat = self.file[self.info.start : self.info.start + self.info.bytes]
        return flat.reshape(*self.info.shape[:-1], -1)


@dataclass(frozen=True)
class _Opened:
    fields: Mapping[str, Field]
    tensors: Sequence[Tensor] = field(default_factory=list)
