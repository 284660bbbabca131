"""Safetensors files, opened with suspicion: every length, shape and offset is checked before use.

Knows the file format and nothing of models. Any bytes give tensors that can be read, or a
`LoadError`, in well under a second: the limits below bound the work whatever a file announces.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gemma3vl_app.errors import LoadError

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}

# The format allows 100 MB of header; parsing a hostile one takes a minute. The 27B in one file, in
# 4 bits with their scales, needs 3,400 tensors and half a megabyte.
MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
MAX_VALUES = 1 << 60  # of a tensor, zeros among its sizes left out: torch multiplies in 64 bits
LENGTH_BYTES = 8
SHOWN = 60  # characters of a foreign name in a message

AGAIN = "Download or copy it again."
NOT_SAFETENSORS = (  # how other files begin: what they are, what to do
    (
        (b"version https://git-lfs",),
        "is only a git-lfs pointer, not the weights. "
        "Run `git lfs pull` in its folder, or download the model again.",
    ),
    (
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "is a PyTorch pickle or a zip file under another name. Those can run code and are not "
        "read: convert the weights to safetensors.",
    ),
    (
        (b"<!doctype", b"<html", b"<?xml"),
        "is a web page, not weights: the download was answered with an error or a login page. "
        "Download it again.",
    ),
    ((b"gguf",), "is a GGUF file under another name. Rename it to end in .gguf."),
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not read yet."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, on disk and in memory."""
        return self.numel * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Return the tensor as a private memory map: pages are read when touched, not copied.

        Writing into it does not reach the file. The map holds no file descriptor and goes with the
        tensor. Raises `LoadError` where the file has changed or cannot be read any more.
        """
        try:
            with safe_open(self.file, "pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(self.key)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise self._changed() from error
        if tensor.dtype != self.dtype or tuple(tensor.shape) != self.shape:
            raise self._changed()
        return tensor

    def _changed(self) -> LoadError:
        return LoadError(
            f"{self.file.name} was changed, moved or damaged while its model was loading. "
            "Leave the model's files alone, and load it again."
        )


def read_headers(files: Sequence[Path], name: str) -> dict[str, StoredTensor]:
    """Return every tensor of the files by its key, after checking the headers.

    `name` is the model's, for messages. Raises `LoadError` for files that are no safetensors, are
    cut, too long, overlap or leave gaps, and for a key that comes twice.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        try:
            header, data_bytes = _read_header(file)
            tensors = _check_header(file, header, data_bytes)
        except _Refused as error:
            raise LoadError(f"{file.name} of {name!r} {error}") from error.__cause__
        if twice := found.keys() & tensors.keys():
            key = min(twice)
            raise LoadError(
                f"{file.name} and {found[key].file.name} of {name!r} both hold {_shown(key)}. "
                "Keep the files of one release only, or download the model again."
            )
        found |= tensors
        if len(found) > MAX_TENSORS:
            raise LoadError(f"{name!r} has more than {MAX_TENSORS:,} tensors: no Gemma 3 does.")
    return found


class _Refused(Exception):
    """What is wrong with a file: the sentence that follows its name."""


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header, and how many bytes follow it."""
    try:
        # A pipe or a device would block or never end.
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _Refused(f"is a folder, not a file. {AGAIN}")
        if not stat.S_ISREG(status.st_mode):
            raise _Refused(f"is not an ordinary file. {AGAIN}")
        with file.open("rb") as opened:
            start = opened.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            rest = status.st_size - LENGTH_BYTES
            if length > MAX_HEADER_BYTES or length > rest or len(start) < LENGTH_BYTES:
                raise _Refused(_what_it_is(start + opened.read(SHOWN), status.st_size))
            text = opened.read(length)
    except FileNotFoundError as error:
        what = "is a link to a file that is gone" if file.is_symlink() else "is missing"
        raise _Refused(f"{what}. {AGAIN}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _Refused(f"cannot be read ({reason}). Check the disk and its rights.") from error
    return _parse(text), rest - length


def _what_it_is(start: bytes, file_bytes: int) -> str:
    """Return what to say about a file that does not begin like safetensors."""
    if not start:
        return f"is damaged: it is empty. {AGAIN}"
    for beginnings, message in NOT_SAFETENSORS:
        if start.lstrip().lower().startswith(tuple(b.lower() for b in beginnings)):
            return message
    if int.from_bytes(start[:LENGTH_BYTES], "little") <= MAX_HEADER_BYTES:
        return f"is damaged: cut off after {file_bytes:,} bytes. {AGAIN}"
    return f"is damaged, or no safetensors file. {AGAIN}"


def _parse(text: bytes) -> dict[str, Any]:
    """Return the header's JSON object; no object in it may name a key twice."""
    # Counted before parsing, since parsing is what takes long: an entry is one object with two
    # lists, and has a comma behind each of its values.
    most = {b"{": MAX_TENSORS + 2, b"[": 2 * MAX_TENSORS, b",": (MAX_DIMENSIONS + 4) * MAX_TENSORS}
    if any(text.count(sign) > limit for sign, limit in most.items()):
        raise _Refused(f"lists more than {MAX_TENSORS:,} tensors: no Gemma 3 does.")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"has a damaged header. {AGAIN}") from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise _Refused(f"has a damaged header. {AGAIN}")
    return header


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        raise _Refused(f"is damaged: its header names something twice. {AGAIN}")
    return built


def _check_header(file: Path, header: dict[str, Any], data_bytes: int) -> dict[str, StoredTensor]:
    """Return the tensors, whose bytes have to fill the rest of the file without gap or overlap."""
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_text_map(metadata):
        raise _Refused(f"has damaged metadata. {AGAIN}")
    tensors, spans = {}, []
    for key, entry in header.items():
        tensors[key], span = _check_entry(file, key, entry)
        spans.append((span, key))
    end = 0
    for (start, stop), key in sorted(spans):
        if start != end:
            what = "overlaps another" if start < end else "leaves a gap before it"
            raise _Refused(f"is damaged: the tensor {_shown(key)} {what}. {AGAIN}")
        end = stop
    if end > data_bytes:
        raise _Refused(f"is damaged: {end - data_bytes:,} of {end:,} bytes are missing. {AGAIN}")
    if end < data_bytes:
        raise _Refused(f"is damaged: {data_bytes - end:,} bytes too long. {AGAIN}")
    return tensors


def _check_entry(file: Path, key: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    """Return one tensor and its span, in bytes behind the header."""
    damaged = _Refused(f"is damaged: the entry of the tensor {_shown(key)} is not valid. {AGAIN}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _is_text(key) or not isinstance(kind, str):
        raise damaged
    if kind not in DTYPES:
        raise _Refused(
            f"holds the tensor {_shown(key)} as {_shown(kind)}, which cannot be read here. "
            "Convert the model to BF16."
        )
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise damaged
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise damaged
    if math.prod(size for size in shape if size) > MAX_VALUES:
        raise damaged
    tensor = StoredTensor(file, key, DTYPES[kind], tuple(shape))
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise damaged
    return tensor, (offsets[0], offsets[1])


def _is_sizes(value: Any) -> bool:
    """Whether it is a list of whole numbers of 0 or more; True and 1.0 are none."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, str) and _is_text(each) for pair in value.items() for each in pair
    )


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can smuggle in half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    return ascii(text[:SHOWN])
